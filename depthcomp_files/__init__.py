"""Files that survive kills, full disks and several processes at once.

Its promises:

- a file is written whole or not at all (`write_atomically`, `write_json`);
- one process at a time changes a file that several share (`locked`);
- a journal keeps each finished piece of work on disk at once, and a killed run goes on from there (`JsonLines`);
- a JSON document is read behind a strict schema, and a file of another kind is never overwritten (`JsonFormat`);
- a path that cannot be written to is refused before the work begins (`require_writable_file`,
  `require_writable_folder`).

The caller chooses the class of the errors.
"""

from depthcomp_files.faults import first_fault
from depthcomp_files.json_document import JsonFormat
from depthcomp_files.json_lines import JsonLines
from depthcomp_files.lock import locked
from depthcomp_files.writable import require_writable_file, require_writable_folder
from depthcomp_files.writing import write_atomically, write_json

__all__ = [
    "JsonFormat",
    "JsonLines",
    "first_fault",
    "locked",
    "require_writable_file",
    "require_writable_folder",
    "write_atomically",
    "write_json",
]
