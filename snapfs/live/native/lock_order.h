/* The order in which the locks of the data path are taken: both extensions, and the Python locks between theirs.
 *
 * A thread takes a lock only while it holds none that stands below it here, and none of the same rank but where noted.
 * Each mutex of the C code is in this list (tests/project/test_lock_order.py); docs/internals/concurrency.md continues
 * it with the locks that Python alone takes.
 *
 * The GIL has no rank, because no thread waits for a lock of ranks 1 to 6 with the GIL in hand: `guard_lock` releases it
 * first, and all other callers are without it. So a thread may wait for the GIL with such a lock held: Python code in
 * `with state.lock` does, and C code where a test replaced the Disk (disk.c). The leaves (rank 7) are taken with the GIL too:
 * their owners wait for nothing, and never for the GIL. Of the router's, reply_lock is taken with the GIL only if it is
 * free, the others without it.
 *
 * Live tree (content.h)
 *
 *   rank  lock                    guards                                              may be taken while holding
 *   0     names_writer.turn       who changes names: the writer's memory, a transaction    nothing; under it locks of rank 7
 *         (names_turn.c)          and the making of a backing file                    alone
 *   1     FileState.lock          one file: its epoch, dirty map, size and times,     nothing. Never two files: a copy
 *                                 from the check of the epoch to the last step        borrows the descriptor of its source,
 *                                                                                     and locks the target alone
 *   2     the latch (Python)      the table of states, the registers of the current   1
 *                                 epoch and of the open cut. Under it no lock is
 *                                 taken but leaves (check_invariants takes 4), and no
 *                                 pin waited for
 *   3     Residency.lock (Python) which chunks of a partly present file are here      1
 *   4     Frozen.latch            what became of each chunk of one frozen file        1
 *   5     SlotFile.lock           (read-write) the file of preserved blocks           1, 4
 *         Scratch's (Python)      the files that a cut took over                      1, 4
 *   6     LogFile.lock            the end of an intent log, and its count in the mark 1
 *   7     leaves, held for no system call, and under which nothing is taken:
 *         shard.lock              one of 64 parts of the table ino -> FileState
 *         Descriptors.lock        the cache of open backing files
 *         sc_core.log_lock        which log is the current one (it is pinned under the lock)
 *         sc_core.pending_lock    the states whose times the backing file does not have yet
 *         sc_core.opens_lock      how often each file is open
 *         sc_core.names_lock      which names are not durable yet
 *         FlushMarks.lock         which files have something to flush
 *         attr_cache.lock         cached inodes, and those without extended attributes
 *         names_writer.lists_lock what changes of names in C leave to Python
 *         wal_mark.lock           the mark of the log
 *         names_turn.lock         who has the turn of the names, and how many wait for it
 *         names_readers.lock      reading connections to the database of names, and how many are in use
 *
 * Pins are waited for like locks, so they have a place, too. A state that is pinned (`FileState.users`) may be waiting
 * for its FileState.lock: its pin is waited for with no lock held (KnownFiles.forget, Core.close). A pinned log
 * (`LogFile.users`) waits for LogFile.lock at most: LogFile.close waits for it before it takes that lock. A pinned
 * descriptor (`open_file.pins`) is waited for by no thread: the last user closes what was dropped.
 *
 * Router (router.h); a device thread that calls the live tree or Python holds none of these
 *
 *   rank  lock                    guards                                              may be taken while holding
 *   1     router.reply_lock       replies are delivered by one thread at a time       nothing
 *   2     router.send_lock        the socket to pyfuse3, its queue, split requests    1
 *   3     router.notice_lock      notifications for the kernel                        1
 *   leaves, each taken alone:
 *         router.deferred_lock    requests for the blocking worker
 *         router.memory_lock      memory that no thread reads a request into
 *         router.handoff_lock     requests that trio's thread read, for device threads; those that the gate holds
 *
 * Handed over without a lock, by atomics:
 *
 *   sc_core.epoch               stored by the cut; a change compares it under FileState.lock
 *   sc_core.closed              stored by `close`, which then waits for all pins
 *   FileState.size, times, flags  stored under FileState.lock, read by any thread, each by itself
 *   router.has_poller           the one thread that polls the device without sleeping (poller.c)
 *   worker.serial               odd while a thread has a request: `threads_settle` waits for it to change
 *   router.blocking_worker_busy as `serial`, of the blocking worker
 *   router.handoff_count        length of the hand-off queue, so that it is locked only when there is something
 *   router.gated                stored under handoff_lock, and looked at again under it before a request is held
 *   router.armed                who delivers replies; stored under reply_lock
 *   router.running              how many device threads there are: a stop counts it down while a settle reads it
 *   router.stopping, unmounted  end of the threads; `stop_event` wakes those that sleep
 *   router.no_suid, written, listed   slots of one inode number each (suid_cache.c)
 *   router.caches_listings      stored before the threads start
 *   sc_core.losing              slots of one inode number each (losing_links.c)
 */
