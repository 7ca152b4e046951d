"""What may be shown of a user's rows in an error message."""


def without_private_data(text: str) -> str:
    """Returns the text with secrets and personal data redacted, whatever params.yaml keeps in the data."""
    from stages._clean.private_data import PERSONAL_KINDS, redact, secret_kinds

    return redact(redact(text, secret_kinds())[0], PERSONAL_KINDS)[0]
