"""Flags of the programs that train many models."""

from absl import flags
from absl.flags import FLAGS

from experiments.cli.help import flag_group
from zaremba_jax.errors import InputError

MOST_MEMBERS = 100_000

with flag_group("many models"):
    flags.DEFINE_integer(
        "members",
        None,
        "models to train, with consecutive seeds from --seed (default: 10; for the paper's table,"
        " as many as in the paper; in a sweep, one per combination)",
        lower_bound=1,
        upper_bound=MOST_MEMBERS,
    )
    flags.DEFINE_list(
        "sizes",
        None,
        "numbers of members to average, comma-separated (default: 1,2,5,10,38 and all)",
    )
    flags.DEFINE_integer(
        "members_at_once",
        None,
        "members that a device trains together (default: what its memory allows; on a CPU, one)",
        lower_bound=1,
    )


def sizes_from_flags(members: int) -> list[int] | None:
    """The sizes given by `--sizes`, each from 1 to `members`; None if it is not given."""
    if FLAGS.sizes is None:
        return None
    for size in FLAGS.sizes:
        if not size.isdecimal() or not 0 < int(size) <= members:
            raise InputError(
                f"--sizes={size}: there are {members} members; give numbers from 1 up to that"
            )
    return [int(size) for size in FLAGS.sizes]
