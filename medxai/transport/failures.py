"""How a transfer fails: for now or for good, and whether the object may have arrived all the same."""

from __future__ import annotations

from medxai.errors import DeliveryError, MedxaiError


class RetryableError(DeliveryError):
    """The node did not answer or was busy: the same transfer may succeed later."""

    retryable = True


class BrokenTransferError(RetryableError):
    """The answer to a transfer that had begun is missing: the object may have arrived."""

    begun = True


class BusyError(RetryableError):
    """The node answered that it cannot take this object now; whether it takes the next one is open."""

    answered = True


class RefusedObjectError(DeliveryError):
    """The node will not take this object; it may take the next one."""

    of_object = True


def is_retryable(error: BaseException) -> bool:
    """Return True when the failure was of the line or of a busy node, not of the object."""
    return bool(getattr(error, "retryable", False))


def may_have_arrived(error: BaseException) -> bool:
    """Return True when the object of this failure may be at the node although nobody said so."""
    return bool(getattr(error, "begun", False))


def is_answer(error: BaseException) -> bool:
    """Return True when the node spoke: it is there, and another object may fare better."""
    return bool(getattr(error, "answered", False))


def is_about_one_object(error: BaseException) -> bool:
    """Return True when another object may fare better at the same node."""
    return bool(getattr(error, "of_object", False))


def missing(package: str) -> MedxaiError:
    """The error for an optional package that is not there."""
    return MedxaiError(f"{package} is not installed; deliver after `pip install medxai[network]`")
