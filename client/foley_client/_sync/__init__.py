"""The synchronous SDK, generated from `foley_client._async` by `make sync`. Do not edit."""
