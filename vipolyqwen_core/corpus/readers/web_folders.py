"""Folders of a web server, as globs go through them."""

from typing import Any

from fsspec.implementations.http import HTTPFileSystem

from vipolyqwen_core.corpus.storage import StorageError, patiently, why


class WebFolders(HTTPFileSystem):
    """A web server, of which a glob leaves out no folder.

    fsspec passes over a folder for which the connection breaks off: a part of a corpus would be missing, and
    nobody told.

    Raises:
        StorageError: the server does not tell what a folder holds
    """

    async def _ls(self, url: str, detail: bool = True, **kwargs: Any) -> list[Any]:
        try:
            return await self._listed(url, detail)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise StorageError(f"{url} cannot be listed: {why(error)}") from error

    @patiently
    async def _listed(self, url: str, detail: bool) -> list[Any]:
        return await super()._ls_real(url, detail)  # type: ignore[no-any-return]
