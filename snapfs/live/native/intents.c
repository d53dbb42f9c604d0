/* The tail of an intent log, to which every thread may append: the twin of `LogFile` in snapfs/live/intents/intents.py.
 *
 * Invariants:
 * 1. A record is written at `end`, which moves only after the write succeeded: a failed or short append leaves nothing
 *    that is read, and the next one overwrites it.
 * 2. A thread that appends without the GIL has pinned the log (`users`), under the lock that guards which log is
 *    current (`sc_core.log_lock`). `close` comes after another log became current, and waits for the pins.
 * 3. Once the log has a slot of the mark, the count there is stored after the write, with the log's lock held.
 */
#include "content.h"

#include <string.h>
#include <unistd.h>

enum { HEADER_SIZE = 128 }; /* intent_records.py */
static const uint32_t USED = 1u << 31; /* intents_mark.py */

static uint32_t crc_table[256];

/* CRC-32 of IEEE 802.3, as zlib.crc32. A record is 28 bytes: a table of bytes will do. */
static uint32_t crc32_of(const unsigned char *data, size_t length)
{
    uint32_t crc = ~0u;
    while (length--)
        crc = crc >> 8 ^ crc_table[(crc ^ *data++) & 255];
    return ~crc;
}

__attribute__((constructor)) static void fill_crc_table(void)
{
    for (uint32_t byte = 0; byte < 256; byte++) {
        uint32_t crc = byte;
        for (int bit = 0; bit < 8; bit++)
            crc = crc >> 1 ^ (crc & 1 ? 0xedb88320u : 0);
        crc_table[byte] = crc;
    }
}

static void put(unsigned char *at, uint64_t value, int bytes)
{
    for (int i = 0; i < bytes; i++)
        at[i] = (unsigned char)(value >> 8 * i);
}

void intents_pack_record(unsigned char *at, int kind, uint64_t ino, uint64_t a, uint64_t b)
{
    put(at, ino, 8);
    put(at + 8, a, 8);
    put(at + 16, b, 8);
    put(at + 24, (uint64_t)kind, 4);
    put(at + 28, crc32_of(at, 28), 4);
}

/* Where the mark counts the records: one store, so that a kill leaves the old count or the new. With the lock held. */
static void note_count(LogFile *log, uint64_t end)
{
    if (!log->slot.obj)
        return;
    uint64_t count = (end - HEADER_SIZE) / RECORD_SIZE;
    uint32_t low = USED | (uint32_t)(count < USED ? count : USED - 1);
    unsigned char body[12];
    memcpy(body, &log->sequence, 8);
    memcpy(body + 8, &low, 4);
    atomic_store_explicit((atomic_ullong *)log->slot.buf + 1, (uint64_t)crc32_of(body, sizeof body) << 32 | low,
                          memory_order_relaxed);
}

int log_file_append(LogFile *log, const char *label, const void *records, size_t length)
{
    pthread_mutex_lock(&log->lock);
    uint64_t end = atomic_load(&log->end);
    int result = log->fd < 0 ? -EBADF : disk_pwrite(&log->disk, label, log->fd, records, length, end);
    if (!result) {
        atomic_store(&log->end, end + length);
        note_count(log, end + length);
    }
    pthread_mutex_unlock(&log->lock);
    return result;
}

/* -- for Python */

static PyObject *LogFile_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"fd", "disk", NULL};
    PyObject *disk;
    int fd;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "iO", names, &fd, &disk))
        return NULL;
    LogFile *self = (LogFile *)type->tp_alloc(type, 0);
    if (!self)
        return NULL;
    self->fd = fd;
    pthread_mutex_init(&self->lock, NULL);
    disk_init(&self->disk, disk);
    return (PyObject *)self;
}

static void LogFile_dealloc(LogFile *self)
{
    pthread_mutex_destroy(&self->lock);
    PyBuffer_Release(&self->slot);
    disk_free(&self->disk);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

/* A test's Disk is called here, so that its exception is raised unchanged. */
static PyObject *append_by_disk(LogFile *self, const char *label, PyObject *records)
{
    guard_lock(&self->lock);
    uint64_t end = atomic_load(&self->end);
    PyObject *done =
        PyObject_CallMethod(self->disk.object, "pwrite", "siOK", label, self->fd, records, (unsigned long long)end);
    if (done) {
        atomic_store(&self->end, end + (uint64_t)PyBytes_GET_SIZE(records));
        note_count(self, end + (uint64_t)PyBytes_GET_SIZE(records));
    }
    pthread_mutex_unlock(&self->lock);
    return done;
}

static PyObject *LogFile_append(LogFile *self, PyObject *args)
{
    PyObject *records;
    const char *label = "intents:append";
    if (!PyArg_ParseTuple(args, "S|s", &records, &label))
        return NULL;
    disk_check_hook(&self->disk);
    if (atomic_load(&self->disk.hooked))
        return append_by_disk(self, label, records);
    int result;
    Py_BEGIN_ALLOW_THREADS
    result = log_file_append(self, label, PyBytes_AS_STRING(records), (size_t)PyBytes_GET_SIZE(records));
    Py_END_ALLOW_THREADS
    if (result)
        return content_raise(result);
    Py_RETURN_NONE;
}

static PyObject *LogFile_note_in(LogFile *self, PyObject *args)
{
    Py_buffer slot;
    unsigned long long sequence;
    if (!PyArg_ParseTuple(args, "w*K", &slot, &sequence))
        return NULL;
    if (slot.len != 16 || self->slot.obj) {
        PyBuffer_Release(&slot);
        PyErr_SetString(PyExc_ValueError, "a log has one slot of two words");
        return NULL;
    }
    guard_lock(&self->lock);
    self->slot = slot;
    self->sequence = sequence;
    note_count(self, atomic_load(&self->end));
    pthread_mutex_unlock(&self->lock);
    Py_RETURN_NONE;
}

static PyObject *LogFile_close(LogFile *self, PyObject *unused)
{
    Py_BEGIN_ALLOW_THREADS
    while (atomic_load(&self->users))
        usleep(50);
    pthread_mutex_lock(&self->lock);
    if (self->fd >= 0)
        close(self->fd);
    self->fd = -1;
    pthread_mutex_unlock(&self->lock);
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&self->slot); /* no append reaches it any more */
    Py_RETURN_NONE;
}

static PyObject *LogFile_end(LogFile *self, void *unused)
{
    return PyLong_FromUnsignedLongLong(atomic_load(&self->end));
}
static PyObject *LogFile_fd(LogFile *self, void *unused) { return PyLong_FromLong(self->fd); }

static PyGetSetDef LogFile_fields[] = {
    {"end", (getter)LogFile_end, NULL, "Bytes that count.", NULL},
    {"fd", (getter)LogFile_fd, NULL, NULL, NULL},
    {NULL},
};

static PyMethodDef LogFile_methods[] = {
    {"append", (PyCFunction)LogFile_append, METH_VARARGS, "Write records; OSError leaves the log as it was."},
    {"note_in", (PyCFunction)LogFile_note_in, METH_VARARGS, "Count the records in this slot of the mark, from now on."},
    {"close", (PyCFunction)LogFile_close, METH_NOARGS, NULL},
    {NULL},
};

PyTypeObject LogFileType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "snapfs.live.content._content.LogFile",
    .tp_basicsize = sizeof(LogFile),
    .tp_new = LogFile_new,
    .tp_dealloc = (destructor)LogFile_dealloc,
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_getset = LogFile_fields,
    .tp_methods = LogFile_methods,
};
