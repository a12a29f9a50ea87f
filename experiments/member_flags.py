"""Flags of the programs that train many models: how many, how many together, what to average."""

from absl import flags

from experiments.command_line import FLAGS

flags.DEFINE_integer(
    "members",
    None,
    "models, with seeds from --seed on (default: 10; of the paper's table, as many as there)",
    lower_bound=1,
)
flags.DEFINE_list(
    "sizes", None, "how many members to average, with commas (default: 1,2,5,10,38 and all)"
)
flags.DEFINE_integer(
    "members_at_once",
    None,
    "members that a device trains together (default: by its memory; a CPU one)",
    lower_bound=1,
)


def asked_sizes(members: int) -> list[int] | None:
    """What `--sizes` asks for, of so many members.

    Raises:
      ValueError: it is no list of numbers, or there are not so many members.
    """
    if FLAGS.sizes is None:
        return None
    for size in FLAGS.sizes:
        if not size.isdecimal() or not 0 < int(size) <= members:
            raise ValueError(f"--sizes={size}: there are {members} members; give numbers from 1 on")
    return [int(size) for size in FLAGS.sizes]
