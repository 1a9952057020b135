"""Prompt templates: sentences with a place for a class's name."""

from collections.abc import Sequence

TEMPLATES: tuple[str, ...] = (
    # What one sees.
    "a photo of a {}.",
    "a close-up picture of a {}.",
    "a {} seen from far away.",
    "a {} in the middle of the picture.",
    "a small {} in the background.",
    "a blurred picture of a {}.",
    "a sharp picture of a {}.",
    "a dark picture that shows a {}.",
    "a bright picture that shows a {}.",
    "a {} that is partly hidden.",
    "a {} seen from the side.",
    "a video frame with a {}.",
    "a picture of a {} in a room.",
    "a picture of a {} outdoors.",
    "a drawing of a {}.",
    # What one hears.
    "the sound of a {}.",
    "a recording of a {}.",
    "the noise that a {} makes.",
    "one can hear a {}.",
    "a {} can be heard far away.",
    "a {} can be heard nearby.",
    "a loud {}.",
    "a quiet {}.",
    "a short clip with the sound of a {}.",
    "a noisy recording of a {}.",
    "a clear recording of a {}.",
    "a {} among other sounds.",
    # What holds for both.
    "this is a {}.",
    "there is a {} here.",
    "an example of a {}.",
    "a scene with a {}.",
    "a typical {}.",
    "an unusual {}.",
    "it must be a {}.",
    "{}.",
)
"""Our own 35, written for this package; the paper has 35, which it does not list."""


def fill(names: Sequence[str], templates: Sequence[str] = TEMPLATES) -> list[str]:
    """Every name in every template, all of a name's prompts together; underscores in names become spaces.

    >>> fill(["sea_waves", "dog"], ["a {}.", "one {}"])
    ['a sea waves.', 'one sea waves', 'a dog.', 'one dog']

    Raises:
        ValueError: If there is no template, one has not exactly one `{}`, or a name is empty.
    """
    if isinstance(templates, str) or not templates:
        raise ValueError(f"`templates` is {templates!r}, expected a list of at least one text with `{{}}`.")
    for template in templates:
        if template.count("{}") != 1:
            raise ValueError(
                f"The template {template!r} has {template.count('{}')} places `{{}}` for a class name, expected one, "
                "as in 'a photo of a {}.'."
            )
    for name in names:
        if not name.strip():
            raise ValueError(f"A class has the name {name!r}, expected a word: prompts are made of the names.")
    return [template.replace("{}", name.replace("_", " ")) for name in names for template in templates]
