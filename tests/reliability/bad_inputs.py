"""Bad input by the hundred: every case is a right answer or a `SteerlabError` that says what was wrong."""

import json
import sys
from typing import Any

import bad_files
import bad_prompts
import bad_properties
import bad_settings
from bad_cases import Case, World


def cases(drawn: int = 60) -> list[Case]:
    """The cases written by hand, and about so many drawn ones of every property."""
    return [*bad_prompts.CASES, *bad_settings.CASES, *bad_files.CASES, *bad_properties.drawn(drawn)]


def run(drawn: int = 60) -> dict[str, Any]:
    """How many cases were tried, and how many were neither answered rightly nor refused clearly."""
    world = World()
    found = [case.run(world) for case in cases(drawn)]
    return {"tried": len(found), "unclear": sum(one["outcome"] == "unclear" for one in found), "cases": found}


if __name__ == "__main__":
    result = run()
    for one in result["cases"]:
        if one["outcome"] == "unclear" or "-v" in sys.argv:
            print(f"{one['outcome']:8} {one['area']}: {one['name']}: {one['detail']}")
    print(json.dumps({key: result[key] for key in ("tried", "unclear")}))
