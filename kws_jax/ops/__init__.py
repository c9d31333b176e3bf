"""Operations that need care to be fast."""
