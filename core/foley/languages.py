"""Codes of languages: ISO 639-2 has two codes for some of them, and QuickTime's list has its own."""

# Terminological code (MP4) to bibliographic code (Matroska) of the languages that have both.
_BIBLIOGRAPHIC = {
    **{"bod": "tib", "ces": "cze", "cym": "wel", "deu": "ger", "ell": "gre", "eus": "baq", "fas": "per", "fra": "fre"},
    **{"hye": "arm", "isl": "ice", "kat": "geo", "mkd": "mac", "mri": "mao", "msa": "may", "mya": "bur", "nld": "dut"},
    **{"ron": "rum", "slk": "slo", "sqi": "alb", "zho": "chi"},
}
_TERMINOLOGICAL = {short: code for code, short in _BIBLIOGRAPHIC.items()}
_SWEDISH = "sve"  # in QuickTime's list
_QUICKTIME = {"swe": _SWEDISH, "nob": "nor", "fra": "fra", "ces": "ces", "slk": "slk", "ron": "ron"}


def canonical(language: str) -> str:
    """Return the terminological code of ISO 639-2 for a code of any kind."""
    language = "swe" if language == _SWEDISH else language
    return _TERMINOLOGICAL.get(language, language)


def quicktime(language: str) -> str:
    """Return the code by which FFmpeg's MOV muxer knows a language. It does not know all of them."""
    code = canonical(language)
    return _QUICKTIME.get(code, _BIBLIOGRAPHIC.get(code, code))
