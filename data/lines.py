"""Lines of JSON in files of others."""

import json


def parsed(line: str, where: str):
    """What a line of JSON says.

    Args:
        where: file and number of the line, for the error.
    Raises:
        ValueError: it is no JSON.
    """
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is no JSON object ({error}); mend that line") from None
