/* The hot steps for Python: `Core.write(ino, offset, data)` and so on, with the GIL released. Results are those of
 * content_api.h: a number, or what is needed first (below -65535); a negative errno is raised.
 */
#include "content.h"

static PyObject *result_object(int64_t result)
{
    return result < 0 && !SC_IS_NEED(result) ? content_raise(result) : PyLong_FromLongLong(result);
}

/* A test may have replaced a method of a Disk: checked once in each call from Python. */
static void check_disk_hooks(sc_core *self)
{
    disk_check_hook(&self->disk);
    disk_check_hook(&self->log->disk);
    if (self->slots)
        disk_check_hook(&self->slots->disk);
}

static PyObject *Core_read(sc_core *self, PyObject *args)
{
    unsigned long long ino, offset;
    Py_ssize_t size;
    int64_t result;
    if (!PyArg_ParseTuple(args, "KKn", &ino, &offset, &size))
        return NULL;
    PyObject *data = PyBytes_FromStringAndSize(NULL, size);
    if (!data)
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    result = file_read(self, ino, offset, PyBytes_AS_STRING(data), (size_t)size);
    Py_END_ALLOW_THREADS
    if (result < 0)
        Py_CLEAR(data);
    else if (result < size)
        _PyBytes_Resize(&data, (Py_ssize_t)result);
    return result < 0 ? result_object(result) : data;
}

static PyObject *Core_write(sc_core *self, PyObject *args)
{
    unsigned long long ino, offset;
    Py_buffer data;
    int taken = false;
    int64_t result;
    if (!PyArg_ParseTuple(args, "KKy*|p", &ino, &offset, &data, &taken))
        return NULL;
    check_disk_hooks(self);
    Py_BEGIN_ALLOW_THREADS
    result = file_write(self, ino, offset, data.buf, (size_t)data.len, taken);
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&data);
    return result_object(result);
}

static PyObject *Core_fsync(sc_core *self, PyObject *args)
{
    unsigned long long ino;
    int datasync;
    int64_t result;
    if (!PyArg_ParseTuple(args, "Kp", &ino, &datasync))
        return NULL;
    check_disk_hooks(self);
    Py_BEGIN_ALLOW_THREADS
    result = file_fsync(self, ino, datasync);
    Py_END_ALLOW_THREADS
    return result_object(result);
}

static PyObject *Core_set_times(sc_core *self, PyObject *args)
{
    unsigned long long ino;
    PyObject *mtime;
    long long ctime_ns;
    int64_t mtime_ns = 0, result;
    if (!PyArg_ParseTuple(args, "KOL", &ino, &mtime, &ctime_ns))
        return NULL;
    if (mtime != Py_None && (mtime_ns = PyLong_AsLongLong(mtime)) == -1 && PyErr_Occurred())
        return NULL;
    check_disk_hooks(self);
    Py_BEGIN_ALLOW_THREADS
    result = file_set_times(self, ino, mtime == Py_None ? NULL : &mtime_ns, ctime_ns);
    Py_END_ALLOW_THREADS
    return result_object(result);
}

/* None for a file whose bytes are not here, or that is not in the table: Python answers then. */
static PyObject *Core_get_attr(sc_core *self, PyObject *number)
{
    uint64_t ino = PyLong_AsUnsignedLongLong(number);
    struct sc_attr attr;
    if (PyErr_Occurred())
        return NULL;
    if (file_get_attr(self, ino, &attr) < 0)
        Py_RETURN_NONE;
    return Py_BuildValue("KLLK", (unsigned long long)attr.size, (long long)attr.mtime_ns, (long long)attr.ctime_ns,
                         (unsigned long long)attr.blocks);
}

static PyObject *Core_apply_times(sc_core *self, PyObject *args)
{
    FileState *state;
    int fd;
    int64_t result;
    if (!PyArg_ParseTuple(args, "O!i", &FileStateType, &state, &fd))
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    result = file_apply_times(self, state, fd);
    Py_END_ALLOW_THREADS
    return result_object(result);
}

static PyObject *Core_fallocate(sc_core *self, PyObject *args)
{
    unsigned long long ino, offset, length;
    unsigned mode;
    int64_t result;
    if (!PyArg_ParseTuple(args, "KIKK", &ino, &mode, &offset, &length))
        return NULL;
    check_disk_hooks(self);
    Py_BEGIN_ALLOW_THREADS
    result = file_fallocate(self, ino, mode, offset, length);
    Py_END_ALLOW_THREADS
    return result_object(result);
}

static PyObject *Core_lseek(sc_core *self, PyObject *args)
{
    unsigned long long ino, offset;
    int whence;
    int64_t result;
    if (!PyArg_ParseTuple(args, "KKi", &ino, &offset, &whence))
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    result = file_lseek(self, ino, offset, whence);
    Py_END_ALLOW_THREADS
    return result_object(result);
}

static PyObject *Core_copy_range(sc_core *self, PyObject *args)
{
    unsigned long long in, in_offset, out, out_offset, length;
    uint64_t need_ino = 0;
    int64_t result;
    if (!PyArg_ParseTuple(args, "KKKKK", &in, &in_offset, &out, &out_offset, &length))
        return NULL;
    check_disk_hooks(self);
    Py_BEGIN_ALLOW_THREADS
    result = file_copy_range(self, in, in_offset, out, out_offset, length, &need_ino);
    Py_END_ALLOW_THREADS
    PyObject *first = result_object(result);
    return first ? Py_BuildValue("NK", first, (unsigned long long)need_ino) : NULL;
}

PyMethodDef core_file_methods[] = {
    {"read", (PyCFunction)Core_read, METH_VARARGS, "read(ino, offset, size): bytes, or what is needed."},
    {"write", (PyCFunction)Core_write, METH_VARARGS, "write(ino, offset, data)."},
    {"fsync", (PyCFunction)Core_fsync, METH_VARARGS, "fsync(ino, datasync)."},
    {"set_times", (PyCFunction)Core_set_times, METH_VARARGS, "set_times(ino, mtime_ns or None, ctime_ns)."},
    {"get_attr", (PyCFunction)Core_get_attr, METH_O, "get_attr(ino): (size, mtime_ns, ctime_ns, blocks), or None."},
    {"apply_times", (PyCFunction)Core_apply_times, METH_VARARGS, "apply_times(state, fd): 1 if they were pending."},
    {"fallocate", (PyCFunction)Core_fallocate, METH_VARARGS, "fallocate(ino, mode, offset, length)."},
    {"lseek", (PyCFunction)Core_lseek, METH_VARARGS, "lseek(ino, offset, whence)."},
    {"copy_range", (PyCFunction)Core_copy_range, METH_VARARGS,
     "copy_range(in, offset, out, offset, length): (result, need_ino)."},
    {NULL},
};
