"""English words for the unknown class, most of them near in sound to a keyword.

None is a word of Speech Commands, so that those can be kept for a test of words that
training never heard. What sounds exactly like a keyword (know, write) is no member
either: it cannot be told from the keyword, and would teach to miss it. For keywords of
the user's own, `synthetic_unknown` finds and leaves out such words by their phonemes.
"""

# fmt: off
NEAR = {
    "yes": (
        "yet", "yeast", "yell", "yesterday", "guess", "less", "mess", "chess", "dress",
        "press", "jest", "best", "yard", "yellow", "yawn", "address",
    ),
    "no": (
        "note", "nose", "known", "nor", "new", "gnome", "knee", "mow", "low", "row",
        "toe", "dough", "snow", "nobody", "notice", "knot", "noble", "nap",
    ),
    "up": (
        "cup", "pup", "upper", "uphill", "us", "ugly", "apple", "supper", "puppy",
        "shut", "hub", "cub", "uncle", "other", "oven", "upset", "app",
    ),
    "down": (
        "town", "brown", "crown", "drown", "frown", "gown", "noun", "downy", "dawn",
        "done", "dine", "den", "doubt", "ground", "round", "sound", "pound", "download",
        "doubtful", "din",
    ),
    "left": (
        "lift", "loft", "lefty", "laughed", "cleft", "theft", "let", "lest", "list",
        "lend", "lens", "leaf", "leather", "lecture", "debt", "lent",
    ),
    "right": (
        "light", "night", "ride", "rice", "wrote", "rate", "root", "riot", "ripe",
        "bright", "fright", "ripen", "rifle", "writer", "lightning", "tight", "kite",
        "rat", "height", "site",
    ),
    "on": (
        "own", "onto", "honest", "ounce", "arm", "and", "in", "awning", "con", "john",
        "gone", "onion", "under", "swan", "fawn", "aunt",
    ),
    "off": (
        "cough", "often", "office", "offer", "awful", "if", "loaf", "laugh", "cuff",
        "toffee", "soft", "ought", "orphan", "tough", "coffee",
    ),
    "stop": (
        "stock", "stump", "step", "top", "shop", "chop", "spot", "store", "storm",
        "stuff", "steep", "stopwatch", "strap", "swap", "stamp", "stool", "stocking",
    ),
    "go": (
        "goat", "goal", "ghost", "gold", "grow", "glow", "gum", "gate", "goose", "low",
        "toe", "cargo", "gopher", "ago", "goggles", "good", "goodbye",
    ),
}
FAR = (
    "about", "above", "action", "answer", "autumn", "baby", "bank", "basket", "because",
    "between", "bicycle", "bottle", "bread", "bridge", "button", "camera", "candle",
    "carpet", "chair", "change", "children", "circle", "city", "clean", "clock",
    "cloud", "computer", "corner", "country", "dance", "danger", "dinner", "doctor",
    "door", "dream", "earth", "engine", "evening", "fairy", "family", "father",
    "finger", "fire", "fish", "flower", "forest", "friend", "garden", "glass", "green",
    "guitar", "hammer", "hello", "history", "holiday", "honey", "hotel", "hundred",
    "island", "jacket", "journey", "kitchen", "ladder", "language", "later", "lemon",
    "letter", "listen", "machine", "market", "maybe", "message", "metal", "minute",
    "mirror", "money", "monday", "monkey", "morning", "mother", "mountain", "music",
    "nature", "never", "number", "ocean", "orange", "paper", "pencil", "people",
    "picture", "planet", "please", "pocket", "police", "question", "radio", "river",
    "school", "season", "shadow", "silver", "sister", "soldier", "spring", "square",
    "station", "stranger", "street", "student", "sugar", "summer", "sunday", "table",
    "teacher", "thank", "thunder", "ticket", "today", "tomorrow", "travel", "trouble",
    "turn", "umbrella", "village", "voice", "volume", "water", "weather", "weekend",
    "window", "winter", "woman", "wonder", "worker", "young",
)
# fmt: on
WORDS = tuple(dict.fromkeys([*(w for words in NEAR.values() for w in words), *FAR]))
