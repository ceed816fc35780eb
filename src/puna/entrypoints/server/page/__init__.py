"""The chat page: what browsers are sent, as it is; `routes.page` serves it."""
