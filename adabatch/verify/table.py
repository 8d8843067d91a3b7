"""The checks for people."""

from adabatch.verify.check import Check


def shown(found: list[Check], console) -> None:
    """Prints the table and what it comes to on a rich console."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    for name, justify in (("check", "left"), ("max |dw| rel.", "right"), ("parts at", "right"),
                          ("promised", "right"), ("verdict", "left"), ("reason", "left")):  # fmt: skip
        table.add_column(name, justify=justify, overflow="fold")
    for check in found:
        table.add_row(check.name, far(check), "-" if check.position is None else f"{check.position:,}",
                      bound(check), verdict(check), check.reason or "")  # fmt: skip
    console.print(table)
    broken = [check for check in found if not check.passed]
    promised = sum(check.promised is not None for check in found)
    if broken:
        names = ", ".join(check.name for check in broken)
        console.print(f"broken: {names}; {len(found) - len(broken)} of {len(found)} checks passed")
    else:
        console.print(f"kept: all {promised} promises")


def far(check: Check) -> str:
    value = check.max_relative_difference
    return "-" if value is None else "0" if value == 0 else f"{value:.1e}"


def bound(check: Check) -> str:
    return (
        "nothing"
        if check.promised is None
        else "same bits"
        if check.promised == 0
        else f"{check.promised:.0e}"
    )


def verdict(check: Check) -> str:
    if not check.passed:
        return "BROKEN"
    return "-" if check.promised is None else "kept"
