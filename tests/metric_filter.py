"""CloudWatch's filter patterns for space-delimited log events: as much as the README's needs.

What is in it is what AWS documents; anything else in a pattern is an error here.
https://docs.aws.amazon.com/AmazonCloudWatch/latest/logs/FilterAndPatternSyntax.html
"""

import re
from fnmatch import fnmatchcase

# A field is text between brackets or quotes, or a word.
_FIELD = re.compile(r'\[([^\]]*)\]|"([^"]*)"|(\S+)')
_CONDITION = re.compile(r"(?P<name>\w+)(?: *= *(?P<value>[\w*]+))?")


def extract(pattern, line):
    """Match a line: its named fields, as `$name`, or None."""
    fields = [next(filter(None, groups), "") for groups in _FIELD.findall(line)]
    inside = re.fullmatch(r"\[(.*)\]", pattern)[1]
    columns = [column.strip() for column in inside.split(",")]
    if columns.count("...") > 1:
        raise ValueError("one ellipsis is all that a pattern may have")
    if "..." in columns:
        place = columns.index("...")
        missing = len(fields) - (len(columns) - 1)
        if missing < 0:
            return None
        columns[place : place + 1] = ["_"] * missing
    if len(columns) != len(fields):
        return None
    named = {}
    for column, field in zip(columns, fields, strict=True):
        condition = _CONDITION.fullmatch(column)
        if condition is None:
            raise ValueError(f"{column!r} is beyond this matcher")
        if condition["value"] and not fnmatchcase(field, condition["value"]):
            return None
        named[f"${condition['name']}"] = field
    return named
