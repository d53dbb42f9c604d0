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

static PyObject *waiting_for_turn(PyObject *module, PyObject *core)
{
    if (!PyObject_TypeCheck(core, &CoreType))
        return PyErr_Format(PyExc_TypeError, "a Core is needed");
    struct names_turn *turn = &((sc_core *)core)->writer.turn;
    return Py_BuildValue("II", names_turn_waiting(turn, TURN_OF_C), names_turn_waiting(turn, TURN_OF_PYTHON));
}

PyMethodDef test_hook_functions[] = {
    {"fail_writes", fail_writes, METH_O, "fail_writes(errno): every write to a backing file fails with it; 0 ends it."},
    {"pack_record", pack_record, METH_VARARGS, "pack_record(kind, ino, a=0, b=0): as intent_records.record."},
    {"waiting_for_turn", waiting_for_turn, METH_O,
     "waiting_for_turn(core): threads of C, and of Python, that wait for the turn of the names."},
    {NULL},
};

#endif
