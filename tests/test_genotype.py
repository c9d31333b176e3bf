import subprocess
import sys

import pytest

from kws_jax.errors import UserError
from kws_jax.models.genotype import (
    Genotype,
    load_genotype,
    published,
)

LAYERS = (("C5",), ("SKIP",), ("C5",), ("C9SE", "C3"), ("C3SE",), ("SKIP",))


def test_saved_and_loaded_is_the_same(tmp_path):
    genotype = Genotype(LAYERS, shortcut="jx1", se_reduction=16)
    (tmp_path / "g.json").write_text(genotype.to_json())
    assert load_genotype(tmp_path / "g.json") == genotype


def test_published_networks_are_those_of_the_figure():
    found = published()
    assert set(found) == {"autokws-darts", "autokws-fairdarts", "autokws-noisydarts"}
    assert found["autokws-darts"].layers == (
        ("C5",),
        ("SKIP",),
        ("C5",),
        ("SKIP",),
        ("C3SE",),
        ("SKIP",),
    )
    assert found["autokws-fairdarts"].layers == (
        ("C7SE",),
        ("C9SE", "C5SE"),
        ("C3SE",),
        ("C5",),
        ("C7",),
        ("SKIP",),
    )
    assert found["autokws-noisydarts"].layers == (
        ("C9SE",),
        ("C3SE",),
        ("C9",),
        ("SKIP",),
        ("C5SE",),
        ("SKIP",),
    )
    for name, genotype in found.items():
        assert load_genotype(name) == genotype


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"layers": (("C5ES",), *LAYERS[1:])}, r"layers\[0\].*'C5ES'.*'C5SE'"),
        ({"layers": (("SKIP",), *LAYERS[1:])}, r"layers\[0\].*SKIP"),
        ({"layers": LAYERS[:5]}, "5 entries, expected 6"),
        ({"layers": ((), *LAYERS[1:])}, r"layers\[0\].*at least one"),
        ({"layers": ("C5", *LAYERS[1:])}, r"layers\[0\].*list"),
        ({"layers": (("C5", "C5"), *LAYERS[1:])}, "twice"),
        ({"layers": LAYERS, "channels": (8, 8)}, "'channels' has 2"),
        ({"layers": LAYERS, "stem_channels": 0}, "positive"),
        ({"layers": LAYERS, "shortcut": "1X1"}, "shortcut '1X1'"),
        (
            {"layers": LAYERS, "channels": (36, 40, 48, 48, 72, 72)},
            r"layers\[1\].*SKIP",
        ),
    ],
)
def test_what_does_not_fit_is_refused(fields, message):
    with pytest.raises(UserError, match=message):
        Genotype(**fields)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{layers", "not JSON"),
        ("[1]", "object"),
        ("{}", "'layers' is missing"),
        ('{"layers": [["C5"]], "stride": [2]}', "no field 'stride'.*'strides'"),
        ('{"layers": [["C4"]], "strides": [2], "channels": [8]}', "unknown operation"),
        ('{"layers": 3}', "'layers'"),
        (
            '{"layers": [[["C5"]]], "strides": [2], "channels": [8]}',
            "unknown operation",
        ),
    ],
)
def test_bad_files_are_named(tmp_path, text, message):
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(UserError, match=f"(?s)bad.json.*{message}"):
        load_genotype(path)


def test_unknown_name_gets_the_nearest():
    with pytest.raises(UserError, match="autokws-noisydarts"):
        load_genotype("autokws-noisy-darts")


def test_importing_genotypes_does_not_import_jax():
    program = "import sys, kws_jax.models.genotype; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
