/* The tail of an intent log, to which every thread may append: the twin of `LogFile` in snapfs/live/intents.py.
 *
 * Invariants:
 * 1. A record is written at `end`, which moves only after the write succeeded: a failed or short append leaves nothing
 *    that counts, and the next one overwrites it.
 * 2. Who appends without the GIL has pinned the log (`users`), under the word that says which log is current (core.c).
 *    `close` comes after another log became current, and waits for the pins.
 */
#include "content.h"

#include <string.h>
#include <unistd.h>

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

void record_pack(unsigned char *at, int kind, uint64_t ino, uint64_t a, uint64_t b)
{
    put(at, ino, 8);
    put(at + 8, a, 8);
    put(at + 16, b, 8);
    put(at + 24, (uint64_t)kind, 4);
    put(at + 28, crc32_of(at, 28), 4);
}

int log_append(LogFile *log, const char *label, const void *records, size_t length)
{
    pthread_mutex_lock(&log->lock);
    uint64_t end = atomic_load(&log->end);
    int result = log->fd < 0 ? -EBADF : disk_pwrite(&log->disk, label, log->fd, records, length, end);
    if (!result)
        atomic_store(&log->end, end + length);
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
    disk_free(&self->disk);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

/* A test's Disk is called right here, so that what it raises is raised as it is. */
static PyObject *append_by_disk(LogFile *self, const char *label, PyObject *records)
{
    lock_without_gil(&self->lock);
    uint64_t end = atomic_load(&self->end);
    PyObject *done = PyObject_CallMethod(self->disk.object, "pwrite", "siOK", label, self->fd, records,
                                         (unsigned long long)end);
    if (done)
        atomic_store(&self->end, end + (uint64_t)PyBytes_GET_SIZE(records));
    pthread_mutex_unlock(&self->lock);
    return done;
}

static PyObject *LogFile_append(LogFile *self, PyObject *args)
{
    PyObject *records;
    const char *label = "intents:append";
    if (!PyArg_ParseTuple(args, "S|s", &records, &label))
        return NULL;
    disk_look(&self->disk);
    if (atomic_load(&self->disk.hooked))
        return append_by_disk(self, label, records);
    int result;
    Py_BEGIN_ALLOW_THREADS
    result = log_append(self, label, PyBytes_AS_STRING(records), (size_t)PyBytes_GET_SIZE(records));
    Py_END_ALLOW_THREADS
    if (result)
        return raise_result(result);
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
    Py_RETURN_NONE;
}

static PyObject *LogFile_end(LogFile *self, void *unused) { return PyLong_FromUnsignedLongLong(atomic_load(&self->end)); }
static PyObject *LogFile_fd(LogFile *self, void *unused) { return PyLong_FromLong(self->fd); }

static PyGetSetDef LogFile_fields[] = {
    {"end", (getter)LogFile_end, NULL, "Bytes that count.", NULL},
    {"fd", (getter)LogFile_fd, NULL, NULL, NULL},
    {NULL},
};

static PyMethodDef LogFile_methods[] = {
    {"append", (PyCFunction)LogFile_append, METH_VARARGS, "Write records; OSError leaves the log as it was."},
    {"close", (PyCFunction)LogFile_close, METH_NOARGS, NULL},
    {NULL},
};

PyTypeObject LogFileType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "snapfs.live._content.LogFile",
    .tp_basicsize = sizeof(LogFile),
    .tp_new = LogFile_new,
    .tp_dealloc = (destructor)LogFile_dealloc,
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_getset = LogFile_fields,
    .tp_methods = LogFile_methods,
};
