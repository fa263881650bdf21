"""Normal forms of names: names that look the same get the same spelling, without invisible characters."""

import re
import unicodedata
from collections.abc import Callable
from itertools import groupby

# Zero width non-joiner and joiner. Words of some scripts need them, and the joiner joins emoji.
JOINERS = r"\u200c\u200d"
# The other format characters (Cf). Those above U+FFFF are a separate constant: not every program that reads the
# HTTP API's document can write them in a pattern.
FORMATS = (
    r"\u00ad\u0600-\u0605\u061c\u06dd\u070f\u0890\u0891\u08e2\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064"
    r"\u2066-\u206f\ufeff\ufff9-\ufffb"
)
HIGH_FORMATS = (
    r"\U000110bd\U000110cd\U00013430-\U0001343f\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0001"
    r"\U000e0020-\U000e007f"
)
VARIATION_SELECTORS = r"\u180b-\u180d\u180f\ufe00-\ufe0f\U000e0100-\U000e01ef"
# Letters and a symbol that look like a space.
BLANKS = "\u115f\u1160\u2800\u3164\uffa0"
# The limit of Unicode's stream-safe text format (UAX #15). Python's time to sort marks grows with their square.
MAX_MARKS = 30

_FORMAT = re.compile(f"[{FORMATS}{HIGH_FORMATS}]")
_JOINER = re.compile(f"[{JOINERS}]")
_INVISIBLE = re.compile(rf"[\u034f\u17b4\u17b5{BLANKS}{JOINERS}{FORMATS}{HIGH_FORMATS}{VARIATION_SELECTORS}]")


def character_error(text: str) -> str | None:
    """A sentence about the first character that the text must not have, or None."""
    if found := _FORMAT.search(text):
        return f"Contains {_describe(found[0])}, which is invisible: remove it."
    for found in _JOINER.finditer(text):
        # A letter's marks and an emoji's variant come before the joiner.
        before, after = text[max(found.start() - 1, 0) : found.start()], text[found.end() : found.end() + 1]
        if not _has_category(before, "LMS") or not _has_category(after, "LS"):
            return f"Contains {_describe(found[0])}, which does not join two letters or emoji: remove it."
    return None


def has_stacked_marks(text: str) -> bool:
    """Whether a letter has more than MAX_MARKS marks: such a text takes long to normalize."""
    stacks = (stack for is_mark, stack in groupby(text, lambda each: unicodedata.combining(each) > 0) if is_mark)
    return any(sum(1 for _ in stack) > MAX_MARKS for stack in stacks)


def is_visible(text: str) -> bool:
    """Whether the text has a visible character."""
    # Spaces, marks and controls do not count. Unassigned and private characters do: they are shown as a box.
    seen = ("Cn", "Co")
    return any(
        (_has_category(each, "LNPS") or unicodedata.category(each) in seen) and each not in BLANKS for each in text
    )


def strip_invisible(text: str) -> str:
    return _INVISIBLE.sub("", text)


def normal_text(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def normal_username(text: str) -> str:
    """The form that is stored (NFKC): without ligatures, full-width letters and the like."""
    return _until_stable(lambda each: unicodedata.normalize("NFKC", each).strip(), text)


def username_key(text: str) -> str:
    """The same for names that look the same: without case and invisible characters."""
    return _until_stable(lambda each: strip_invisible(normal_username(each).casefold()), text)


def normal_sku(text: str) -> str:
    """The form that is stored: the same for SKUs that look the same."""
    return _until_stable(lambda each: normal_username(normal_username(each).upper()), text)


def with_suffix(name: str, suffix: object, max_length: int) -> str:
    """`name-suffix`, with the name cut to fit, without format characters."""
    return f"{_FORMAT.sub('', name)[: max_length - 1 - len(str(suffix))]}-{suffix}"


def _until_stable(normalize: Callable[[str], str], text: str) -> str:
    """Normalize until nothing changes: one pass may create something that the next one changes."""
    while (normal := normalize(text)) != text:
        text = normal
    return text


def _has_category(character: str, categories: str) -> bool:
    return character != "" and unicodedata.category(character)[0] in categories


def _describe(character: str) -> str:
    return f"the character U+{ord(character):04X} ({unicodedata.name(character, 'format character')})"
