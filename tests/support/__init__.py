"""What the tests stand on: an S3 in memory (`fakes3`), and a folder of events on it (`folder`).

from support.fakes3 import Error, FakeS3, on
from support.folder import NOW, Folder

def test_a_copy_refused_once_is_delivered_by_the_next_run(fake):
folder = Folder(fake)
name = folder.put(60, key="k", content=b"content")
fake.fault = on("CopyObject", Error(503, "SlowDown"))
folder.run()
folder.run()
assert folder.delivered == [name]
assert lost(fake.history) == []
"""
