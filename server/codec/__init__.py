"""Messages as the API's JSON and back (compat.md 5): lowerCamelCase, words for enums, dates in
milliseconds, free JSON spliced in untouched. Readers and writers are built once per message type.
"""
