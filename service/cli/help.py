"""Parts of the commands' help texts."""


def example(*commands: str) -> str:
    """Return the epilog of a command's help. Click does not wrap it, so that the example can be copied."""
    return "\b\nExample:\n" + "\n".join(f"  {command}" for command in commands)
