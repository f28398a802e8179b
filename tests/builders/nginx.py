"""A real nginx over a folder, which needs neither root's rights nor a file of the system."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.tools import program

MAIN = """
daemon off;
pid {folder}/nginx.pid;
error_log stderr warn;
events {{}}
http {{
  access_log off;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  include {folder}/default.conf;
}}
"""


def start_nginx(folder: Path) -> subprocess.Popen[bytes]:
    """Start nginx with the servers of `default.conf` in the folder, which takes every other file of it, too."""
    (folder / "nginx.conf").write_text(MAIN.format(folder=folder))
    return subprocess.Popen([program("nginx"), "-p", str(folder), "-c", str(folder / "nginx.conf")])
