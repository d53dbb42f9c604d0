/* snapfs.live._content: the module, and the capsule with the functions for C callers (content_api.h). */
#include "content.h"

static sc_core *core_of(void *object)
{
    if (Py_IS_TYPE((PyObject *)object, &CoreType))
        return (sc_core *)object;
    PyErr_Format(PyExc_TypeError, "a Core is needed, not %s", Py_TYPE((PyObject *)object)->tp_name);
    return NULL;
}

static int64_t lend(sc_core *core, uint64_t ino, struct sc_lent *lent)
{
    struct opened *opened;
    int64_t result = file_reach(core, ino, &opened);
    if (!result)
        *lent = (struct sc_lent){opened->fd, opened};
    return result;
}

static void give_back(sc_core *core, struct sc_lent *lent)
{
    descriptors_release(core->descriptors, lent->pin);
    *lent = (struct sc_lent){-1, NULL};
}

/* See content_api.h for why. */
static int64_t lseek_if_settled(sc_core *core, uint64_t ino, uint64_t offset, int whence)
{
    return core_may_be_written(core, ino) ? -ENOSYS : file_lseek(core, ino, offset, whence);
}

/* A file that is not here, or not at all any more, is Python's to open: it knows which. */
static int64_t count_open(sc_core *core, uint64_t ino, int writing)
{
    FileState *state = core_pin(core, ino);
    if (state)
        core_unpin(state);
    else if (!descriptors_has_file(core->descriptors, ino))
        return SC_NEED(SC_NEED_LOAD);
    int64_t opens = atomic_load(&core->closed) ? SC_NEED(SC_NEED_CLOSED) : core_count_open(core, ino, writing, 1);
    return opens < 0 ? opens : 0;
}

/* The last one brings the times to the backing file; what fails there is tried again by the housekeeping. */
static int64_t count_release(sc_core *core, uint64_t ino, int writing)
{
    struct opened *opened;
    FileState *state = core_count_open(core, ino, writing, -1) ? NULL : core_pin(core, ino);
    bool astray = state && (atomic_load(&state->times_pending) || atomic_load(&state->wrote));
    if (astray && !descriptors_acquire(core->descriptors, ino, &opened)) {
        file_apply_times(core, state, opened->fd);
        descriptors_release(core->descriptors, opened);
    }
    if (state)
        core_unpin(state);
    return 0;
}

static int64_t needs_names(sc_core *core, uint64_t ino)
{
    return atomic_load(&core->closed) ? SC_NEED(SC_NEED_CLOSED) : core_needs_names(core, ino);
}

static int64_t get_row(sc_core *core, uint64_t ino, struct sc_row *row)
{
    return !atomic_load(&core->closed) && rows_find(&core->rows, ino, row);
}

static int64_t is_bare(sc_core *core, uint64_t ino)
{
    return !atomic_load(&core->closed) && rows_is_bare(&core->rows, ino);
}

const struct sc_api content_api = {
    .version = SC_API_VERSION,
    .bytes = sizeof(struct sc_api),
    .core_of = core_of,
    .read = file_read,
    .write = file_write,
    .fsync = file_fsync,
    .fallocate = file_fallocate,
    .lseek = lseek_if_settled,
    .copy_range = file_copy_range,
    .set_times = file_set_times,
    .get_attr = file_get_attr,
    .open = count_open,
    .release = count_release,
    .lend = lend,
    .give_back = give_back,
    .needs_names = needs_names,
    .get_row = get_row,
    .is_bare = is_bare,
};

static PyObject *break_writes(PyObject *module, PyObject *number)
{
    atomic_store(&broken_writes, (int)PyLong_AsLong(number));
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
    record_pack(record, kind, ino, a, b);
    return PyBytes_FromStringAndSize((char *)record, sizeof record);
}

static PyMethodDef functions[] = {
    {"break_writes", break_writes, METH_O, "For tests: let every write to a backing file fail with this errno; 0 ends it."},
    {"record", pack_record, METH_VARARGS, "record(kind, ino, a=0, b=0): as intents.record."},
    {NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "snapfs.live._content", "The bytes of files without the GIL; see content_api.h.", -1, functions,
};

static int add_methods(PyMethodDef *method)
{
    for (; method->ml_name; method++) {
        PyObject *made = PyDescr_NewMethod(&CoreType, method);
        int failed = !made || PyDict_SetItemString(CoreType.tp_dict, method->ml_name, made);
        Py_XDECREF(made);
        if (failed)
            return -1;
    }
    PyType_Modified(&CoreType);
    return 0;
}

PyMODINIT_FUNC PyInit__content(void)
{
    PyTypeObject *types[] = {&GuardType, &DirtyMapType, &LogFileType, &SlotFileType, &FrozenType, &DescriptorsType,
                             &FileStateType, &CoreType};
    PyObject *module = PyModule_Create(&definition);
    for (size_t i = 0; module && i < sizeof types / sizeof *types; i++)
        if (PyModule_AddType(module, types[i]))
            Py_CLEAR(module);
    PyObject *capsule = module ? PyCapsule_New((void *)(uintptr_t)&content_api, SC_CAPSULE, NULL) : NULL;
    if (module && (!capsule || PyModule_AddObjectRef(module, "API", capsule) || add_methods(core_file_methods)
                   || add_methods(core_count_methods) || add_methods(core_row_methods)))
        Py_CLEAR(module);
    Py_XDECREF(capsule);
    return module;
}
