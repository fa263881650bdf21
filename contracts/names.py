"""How names are written: one spelling for what a person reads as one name, and nothing in it that can't be seen."""

import re
import unicodedata
from collections.abc import Callable
from itertools import groupby

# Zero width non-joiner and joiner: words of some scripts need either, and emoji are joined by the second.
JOINERS = r"\u200c\u200d"
# The other format characters (Cf). Those beyond U+FFFF are apart: not every program that reads
# the HTTP API's document knows how to write them.
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
# As many as Unicode's stream-safe format allows (UAX #15). Python sorts them in a time that grows with their square.
MAX_MARKS = 30

_FORMAT = re.compile(f"[{FORMATS}{HIGH_FORMATS}]")
_JOINER = re.compile(f"[{JOINERS}]")
_INVISIBLE = re.compile(rf"[\u034f\u17b4\u17b5{BLANKS}{JOINERS}{FORMATS}{HIGH_FORMATS}{VARIATION_SELECTORS}]")


def character_error(text: str) -> str | None:
    """What is wrong with the characters of a text, in a sentence; None if nothing is."""
    if found := _FORMAT.search(text):
        return f"Has {_describe(found[0])}, which can't be seen: leave it out."
    for found in _JOINER.finditer(text):
        # A letter may have marks, and an emoji its variant, in front of what joins it.
        before, after = text[max(found.start() - 1, 0) : found.start()], text[found.end() : found.end() + 1]
        if not _has_category(before, "LMS") or not _has_category(after, "LS"):
            return f"Has {_describe(found[0])} that joins no two letters or emoji: leave it out."
    return None


def has_stacked_marks(text: str) -> bool:
    """Whether a letter has more marks than any language needs. Not to be normalized then."""
    stacks = (stack for is_mark, stack in groupby(text, lambda each: unicodedata.combining(each) > 0) if is_mark)
    return any(sum(1 for _ in stack) > MAX_MARKS for stack in stacks)


def is_visible(text: str) -> bool:
    """Whether there is anything to see in it."""
    # Neither spaces, marks nor controls. What Unicode has not assigned yet, or never will, is shown as a box.
    seen = ("Cn", "Co")
    return any(
        (_has_category(each, "LNPS") or unicodedata.category(each) in seen) and each not in BLANKS for each in text
    )


def strip_invisible(text: str) -> str:
    return _INVISIBLE.sub("", text)


def normal_text(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def normal_username(text: str) -> str:
    """As it is stored: without the differences of mere form, such as ligatures and full width."""
    return _until_stable(lambda each: unicodedata.normalize("NFKC", each).strip(), text)


def username_key(text: str) -> str:
    """The same for names that people take for one: without case, nor what can't be seen."""
    return _until_stable(lambda each: strip_invisible(normal_username(each).casefold()), text)


def normal_sku(text: str) -> str:
    """As it is stored, and what is the same for SKUs that people take for one."""
    return _until_stable(lambda each: normal_username(normal_username(each).upper()), text)


def with_suffix(name: str, suffix: object, most: int) -> str:
    """`name-suffix`, in so many characters at most, without format characters."""
    return f"{_FORMAT.sub('', name)[: most - 1 - len(str(suffix))]}-{suffix}"


def _until_stable(normalize: Callable[[str], str], text: str) -> str:
    """Normalized until nothing changes: what one pass makes, the next may change."""
    while (normal := normalize(text)) != text:
        text = normal
    return text


def _has_category(character: str, categories: str) -> bool:
    return character != "" and unicodedata.category(character)[0] in categories


def _describe(character: str) -> str:
    return f"the character U+{ord(character):04X} ({unicodedata.name(character, 'format character')})"
