/* The hot steps for Python: `Core.write(ino, offset, data)` and so on, with the GIL let go. Results are those of
 * content_api.h: a number, or what is needed first (below -65535); a negative errno is raised.
 */
#include "content.h"

static PyObject *answer(int64_t result)
{
    return result < 0 && !SC_IS_NEED(result) ? raise_result(result) : PyLong_FromLongLong(result);
}

/* What a test puts over a Disk is looked for once in each call from Python. */
static void look_at_disks(sc_core *self)
{
    disk_look(&self->disk);
    disk_look(&self->log->disk);
    if (self->slots)
        disk_look(&self->slots->disk);
}

static PyObject *read_bytes(sc_core *self, PyObject *args)
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
    return result < 0 ? answer(result) : data;
}

static PyObject *write_bytes(sc_core *self, PyObject *args)
{
    unsigned long long ino, offset;
    Py_buffer data;
    int64_t result;
    if (!PyArg_ParseTuple(args, "KKy*", &ino, &offset, &data))
        return NULL;
    look_at_disks(self);
    Py_BEGIN_ALLOW_THREADS
    result = file_write(self, ino, offset, data.buf, (size_t)data.len);
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&data);
    return answer(result);
}

static PyObject *sync_bytes(sc_core *self, PyObject *args)
{
    unsigned long long ino;
    int datasync;
    int64_t result;
    if (!PyArg_ParseTuple(args, "Kp", &ino, &datasync))
        return NULL;
    look_at_disks(self);
    Py_BEGIN_ALLOW_THREADS
    result = file_fsync(self, ino, datasync);
    Py_END_ALLOW_THREADS
    return answer(result);
}

static PyObject *set_times(sc_core *self, PyObject *args)
{
    unsigned long long ino;
    PyObject *mtime;
    long long ctime_ns;
    int64_t mtime_ns = 0, result;
    if (!PyArg_ParseTuple(args, "KOL", &ino, &mtime, &ctime_ns))
        return NULL;
    if (mtime != Py_None && (mtime_ns = PyLong_AsLongLong(mtime)) == -1 && PyErr_Occurred())
        return NULL;
    look_at_disks(self);
    Py_BEGIN_ALLOW_THREADS
    result = file_set_times(self, ino, mtime == Py_None ? NULL : &mtime_ns, ctime_ns);
    Py_END_ALLOW_THREADS
    return answer(result);
}

/* Of a file whose bytes are not here, or not known, that is Python's to say. */
static PyObject *get_attr(sc_core *self, PyObject *number)
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

static PyObject *apply_times(sc_core *self, PyObject *args)
{
    FileState *state;
    int fd;
    int64_t result;
    if (!PyArg_ParseTuple(args, "O!i", &FileStateType, &state, &fd))
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    result = file_apply_times(self, state, fd);
    Py_END_ALLOW_THREADS
    return answer(result);
}

static PyObject *allocate(sc_core *self, PyObject *args)
{
    unsigned long long ino, offset, length;
    unsigned mode;
    int64_t result;
    if (!PyArg_ParseTuple(args, "KIKK", &ino, &mode, &offset, &length))
        return NULL;
    look_at_disks(self);
    Py_BEGIN_ALLOW_THREADS
    result = file_fallocate(self, ino, mode, offset, length);
    Py_END_ALLOW_THREADS
    return answer(result);
}

static PyObject *seek(sc_core *self, PyObject *args)
{
    unsigned long long ino, offset;
    int whence;
    int64_t result;
    if (!PyArg_ParseTuple(args, "KKi", &ino, &offset, &whence))
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    result = file_lseek(self, ino, offset, whence);
    Py_END_ALLOW_THREADS
    return answer(result);
}

static PyObject *copy_range(sc_core *self, PyObject *args)
{
    unsigned long long in, in_offset, out, out_offset, length;
    uint64_t needy = 0;
    int64_t result;
    if (!PyArg_ParseTuple(args, "KKKKK", &in, &in_offset, &out, &out_offset, &length))
        return NULL;
    look_at_disks(self);
    Py_BEGIN_ALLOW_THREADS
    result = file_copy_range(self, in, in_offset, out, out_offset, length, &needy);
    Py_END_ALLOW_THREADS
    PyObject *first = answer(result);
    return first ? Py_BuildValue("NK", first, (unsigned long long)needy) : NULL;
}

PyMethodDef core_file_methods[] = {
    {"read", (PyCFunction)read_bytes, METH_VARARGS, "read(ino, offset, size): bytes, or what is needed."},
    {"write", (PyCFunction)write_bytes, METH_VARARGS, "write(ino, offset, data)."},
    {"fsync", (PyCFunction)sync_bytes, METH_VARARGS, "fsync(ino, datasync)."},
    {"set_times", (PyCFunction)set_times, METH_VARARGS, "set_times(ino, mtime_ns or None, ctime_ns)."},
    {"get_attr", (PyCFunction)get_attr, METH_O, "get_attr(ino): (size, mtime_ns, ctime_ns, blocks), or None."},
    {"apply_times", (PyCFunction)apply_times, METH_VARARGS, "apply_times(state, fd): 1 if they were pending."},
    {"fallocate", (PyCFunction)allocate, METH_VARARGS, "fallocate(ino, mode, offset, length)."},
    {"lseek", (PyCFunction)seek, METH_VARARGS, "lseek(ino, offset, whence)."},
    {"copy_range", (PyCFunction)copy_range, METH_VARARGS, "copy_range(in, offset, out, offset, length): (result, needy)."},
    {NULL},
};
