"""The text of a form."""

import json


def text(**values: object) -> str:
    """Settings as a form takes them; JSON is YAML. Give keys of several words as `**{"until when": "6h"}`."""
    return json.dumps(values)
