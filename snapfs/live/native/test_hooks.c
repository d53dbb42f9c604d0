/* What tests alone need of the data path. Built with SNAPFS_TEST only (setup.py); `_content.TEST_HOOKS` reports it. */
#include "content.h"

#ifdef SNAPFS_TEST

_Atomic int test_write_error;

static PyObject *fail_writes(PyObject *module, PyObject *number)
{
    atomic_store(&test_write_error, (int)PyLong_AsLong(number));
    if (PyErr_Occurred())
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *pack_record(PyObject *module, PyObject *args)
{
    int kind;
    unsigned long long ino, a = 0, b = 0;
    unsigned char record[RECORD_SIZE];
    if (!PyArg_ParseTuple(args, "iK|KK", &kind, &ino, &a, &b))
        return NULL;
    intents_pack_record(record, kind, ino, a, b);
    return PyBytes_FromStringAndSize((char *)record, sizeof record);
}

PyMethodDef test_hook_functions[] = {
    {"fail_writes", fail_writes, METH_O, "fail_writes(errno): every write to a backing file fails with it; 0 ends it."},
    {"pack_record", pack_record, METH_VARARGS, "pack_record(kind, ino, a=0, b=0): as intent_records.record."},
    {NULL},
};

#endif
