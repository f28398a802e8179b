"""Errors of the engine, with vLLM's messages and status codes."""

from __future__ import annotations

NOT_FINITE = "The model answered with NaN or infinity: check the adapter's weights."


class EngineError(Exception):
    """Base of everything that this engine raises on purpose."""


class ModelUnusable(EngineError):
    """The base model's folder cannot be served; the message names the folder and the fix."""


class AdapterUnusable(EngineError):
    """An adapter folder that this engine cannot serve; the message says why."""


class AdapterMissing(AdapterUnusable):
    """The folder holds no adapter at all."""


class ApiError(EngineError):
    """An answer of the wire: status, vLLM's error type, the message and the field it is about."""

    def __init__(self, status: int, type_: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.type = type_
        self.message = message
        self.param = param

    def body(self) -> dict[str, object]:
        """The error as vLLM writes it."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.status}}


def invalid_input(message: str) -> ApiError:
    """400 of the LoRA endpoints."""
    return ApiError(400, "InvalidUserInput", message)


def bad_request(message: str, param: str | None = None) -> ApiError:
    """400 of the completion endpoints."""
    return ApiError(400, "BadRequestError", message, param)


def missing_field(field: str, given: int) -> ApiError:
    """400 for a body without a required field; `given` is how many fields it has."""
    detail = {"type": "missing", "loc": f"body.{field}", "msg": "Field required", "input": f"<dict of {given} items>"}
    return ApiError(400, "Bad Request", f"1 validation error:\n  {detail}", f"body.{field}")


def not_found(message: str, param: str | None = None) -> ApiError:
    """404."""
    return ApiError(404, "NotFoundError", message, param)


def internal(message: str) -> ApiError:
    """500."""
    return ApiError(500, "InternalServerError", message)


def add_lora_failed(reason: str) -> ApiError:
    """500 for weights that could not be read or used, as vLLM reports them."""
    return internal(
        f"Call to add_lora method failed: Worker failed with error '{reason}', "
        "please check the stack trace above for the root cause"
    )
