/* Durable acts of the hot steps. Plain system calls; but a test may have put a Disk of its own in place (blocks.py), to
 * see, fail or stop each act by its label: then the act is a method call, for which the GIL is taken. That may happen
 * while locks of ours are held. That cannot deadlock, because no thread waits for those locks with the GIL in hand
 * (lock_order.h).
 */
#include "content.h"

#include <unistd.h>

int disk_init(struct disk *disk, PyObject *object)
{
    disk->object = Py_NewRef(object);
    disk_check_hook(disk);
    return 0;
}

void disk_free(struct disk *disk) { Py_CLEAR(disk->object); }

/* Whether the object is of the plain class and has no method put over one of it. */
void disk_check_hook(struct disk *disk)
{
    static PyObject *plain;
    bool hooked = true;
    if (!plain) {
        PyObject *module = PyImport_ImportModule("snapfs.base.blocks");
        plain = module ? PyObject_GetAttrString(module, "Disk") : NULL;
        Py_XDECREF(module);
    }
    if ((PyObject *)Py_TYPE(disk->object) == plain) {
        PyObject *own = PyObject_GetAttrString(disk->object, "__dict__");
        hooked = !own || PyObject_IsTrue(own);
        Py_XDECREF(own);
    }
    PyErr_Clear();
    atomic_store_explicit(&disk->hooked, hooked, memory_order_relaxed);
}

int64_t disk_pwrite_all(int fd, const void *data, size_t length, uint64_t offset)
{
    const char *from = data;
    size_t done = 0;
    while (done < length) {
        ssize_t step = pwrite(fd, from + done, length - done, (off_t)(offset + done));
        if (step < 0 && errno == EINTR)
            continue;
        if (step < 0)
            return -errno;
        done += (size_t)step;
    }
    return 0;
}

/* What a method call of the test's Disk came to: 0, -errno, or RAISED with the exception left for the caller's Python.
 * */
static int call_result(PyObject *answer, bool is_pythons)
{
    if (answer) {
        Py_DECREF(answer);
        return 0;
    }
    PyObject *type, *value, *trace;
    int number = 0;
    if (PyErr_ExceptionMatches(PyExc_OSError)) {
        PyErr_Fetch(&type, &value, &trace);
        PyErr_NormalizeException(&type, &value, &trace);
        PyObject *held = PyObject_GetAttrString(value, "errno");
        number = held ? (int)PyLong_AsLong(held) : 0;
        Py_XDECREF(held);
        PyErr_Restore(type, value, trace);
        PyErr_Clear();
        return number > 0 ? -number : -EIO;
    }
    if (is_pythons)
        return RAISED;
    PyErr_WriteUnraisable(NULL);
    return -EIO;
}

int disk_pwrite(struct disk *disk, const char *label, int fd, const void *data, size_t length, uint64_t offset)
{
    if (!atomic_load_explicit(&disk->hooked, memory_order_relaxed))
        return (int)disk_pwrite_all(fd, data, length, offset);
    bool is_pythons = PyGILState_GetThisThreadState() != NULL;
    PyGILState_STATE gil = PyGILState_Ensure();
    PyObject *answer = PyErr_Occurred() ? NULL
                                        : PyObject_CallMethod(disk->object, "pwrite", "siy#K", label, fd, data,
                                                              (Py_ssize_t)length, (unsigned long long)offset);
    int result = call_result(answer, is_pythons);
    PyGILState_Release(gil);
    return result;
}

int disk_sync(struct disk *disk, const char *label, int fd, bool times)
{
    if (!atomic_load_explicit(&disk->hooked, memory_order_relaxed))
        return (times ? fsync(fd) : fdatasync(fd)) ? -errno : 0;
    bool is_pythons = PyGILState_GetThisThreadState() != NULL;
    PyGILState_STATE gil = PyGILState_Ensure();
    PyObject *answer =
        PyErr_Occurred() ? NULL : PyObject_CallMethod(disk->object, times ? "fsync" : "fdatasync", "si", label, fd);
    int result = call_result(answer, is_pythons);
    PyGILState_Release(gil);
    return result;
}

PyObject *content_raise(int64_t result)
{
    if (PyErr_Occurred())
        return NULL;
    if (result == RAISED)
        return PyErr_Format(PyExc_RuntimeError, "a Disk failed without an exception");
    errno = (int)-result;
    return PyErr_SetFromErrno(PyExc_OSError);
}
