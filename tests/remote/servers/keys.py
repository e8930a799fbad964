"""A real database of API keys, as NDIF asks for it: Postgres with the four tables that its query joins."""

import os
import pwd
import shutil
import subprocess
import time
import uuid
from pathlib import Path
from typing import Self

from servers.venvs import CannotInstall, program

PORT = 7110
TABLES = """
create table users (user_id uuid primary key, email text);
create table user_tags (user_tag_id int primary key, name text);
create table keys (key_id uuid primary key, user_id uuid);
create table key_user_tag_assignments (key_id uuid, user_tag_id int);
"""


class Keys:
    """A database on loopback with one key in it; `with Keys(folder) as keys`.

    Args:
        folder: for the data; made anew.

    Raises:
        CannotInstall: no Postgres, or no user that it would run as.
    """

    url = f"postgresql://postgres@127.0.0.1:{PORT}/postgres"

    def __init__(self, folder: Path) -> None:
        program("pg_ctlcluster", "postgresql")
        found = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
        if not found:
            raise CannotInstall("no Postgres under /usr/lib/postgresql: apt-get install postgresql")
        self.programs, self.folder, self.valid = found[-1], folder, str(uuid.uuid4())
        self.server: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        user = pwd.getpwnam("postgres")  # it refuses to run as root
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        os.chown(self.folder, user.pw_uid, user.pw_gid)
        for parent in self.folder.parents[:-2]:
            parent.chmod(parent.stat().st_mode | 0o011)
        self._as = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": [], "cwd": self.folder}
        self._call("initdb", "-D", str(self.folder), "-A", "trust", "-U", "postgres", "--no-sync")
        self.server = subprocess.Popen(
            [str(self.programs / "postgres"), "-D", str(self.folder), "-p", str(PORT), "-k", str(self.folder), "-F"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **self._as,
        )  # fmt: skip
        end = time.monotonic() + 30
        ready = [self.programs / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(PORT)]
        while subprocess.run(ready, check=False).returncode:
            if time.monotonic() > end or self.server.poll() is not None:
                raise RuntimeError("Postgres never answered")
            time.sleep(0.1)
        row = f"insert into users values ('{self.valid}', 'someone@example.org');"
        row += f"insert into keys values ('{self.valid}', '{self.valid}');"
        self._call("psql", "-q", "-h", "127.0.0.1", "-p", str(PORT), "-U", "postgres", "-c", TABLES + row)
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End it at once, as a crash would."""
        if self.server is not None:
            self.server.kill()
            self.server.wait()
            self.server = None

    def _call(self, name: str, *arguments: str) -> None:
        subprocess.run([str(self.programs / name), *arguments], check=True, capture_output=True, **self._as)
