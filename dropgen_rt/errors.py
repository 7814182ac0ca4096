"""Every refusal that a user can meet: one class per cause, one line of text, one exit code per kind.

A message says what was given, what is accepted, and the next step. The command line prints it as
``error: …`` and ends with ``exit_code``; nothing here carries a traceback to the user.
"""


class DropgenError(Exception):
    """The root of all refusals; ``exit_code`` is what the command line ends with."""

    exit_code = 1


class UsageError(DropgenError):
    """Options that contradict each other or lie outside their range."""

    exit_code = 2


class InputError(DropgenError):
    """A scan, label map or data set that cannot be used as given."""

    exit_code = 3


class MissingInputError(InputError):
    """The path names nothing."""


class UnreadableInputError(InputError):
    """Not an image, truncated, or failing its checksum."""


class UnsuitableInputError(InputError):
    """A readable image whose kind or values are not those of one 3D scan."""


class GeometryError(InputError):
    """Size, spacing, direction or affine that no rigid voxel grid has."""


class FaultyDatasetError(InputError):
    """Files of a data set that cannot be trained on: the message has one line for each fault."""


class ModelError(DropgenError):
    """A model, manifest, checkpoint or engine that cannot be used."""

    exit_code = 4


class MissingModelError(ModelError):
    """No model of this name or at this path."""


class VerificationError(DropgenError):
    """A result differs from its referee by more than allowed."""

    exit_code = 5


class ResourceError(DropgenError):
    """Memory, disk, permissions or a device that is not there."""

    exit_code = 6


class OutputError(ResourceError):
    """The output folder is missing, read-only or full."""


class EngineError(ModelError):
    """An engine file that is foreign, altered, or no longer fits this machine."""


class PrecisionError(ModelError):
    """A precision that the engine or the machine does not have; never replaced by another on the quiet."""


class DeviceError(ResourceError):
    """No such GPU, no driver for it, or a GPU that stopped answering."""


class DeviceMemoryError(DeviceError):
    """The GPU has too little free memory."""


class MemoryLimitError(ResourceError):
    """The work needs more memory than there is, or than was allowed."""
