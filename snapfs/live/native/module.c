/* snapfs.live.content._content: the module, and the capsule with the functions for C callers (content_api.h). */
#include "content.h"

#include <sys/statvfs.h>

static sc_core *core_of(void *object)
{
    if (Py_IS_TYPE((PyObject *)object, &CoreType))
        return (sc_core *)object;
    PyErr_Format(PyExc_TypeError, "a Core is needed, not %s", Py_TYPE((PyObject *)object)->tp_name);
    return NULL;
}

static int64_t lend(sc_core *core, uint64_t ino, struct sc_lent *lent)
{
    struct open_file *opened;
    int64_t result = file_acquire(core, ino, &opened);
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

/* A file that is not here, or not at all any more, is left to Python, which knows which of the two it is. */
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

/* The last release writes the times to the backing file; the housekeeping tries again what fails here. */
static int64_t count_release(sc_core *core, uint64_t ino, int writing)
{
    struct open_file *opened;
    int64_t left = core_count_open(core, ino, writing, -1);
    FileState *state = left ? NULL : core_pin(core, ino);
    bool stale = state && (atomic_load(&state->times_pending) || atomic_load(&state->wrote));
    if (stale && !descriptors_acquire(core->descriptors, ino, &opened)) {
        file_apply_times(core, state, opened->fd);
        descriptors_release(core->descriptors, opened);
    }
    if (state)
        core_unpin(state);
    return left;
}

static int64_t needs_names(sc_core *core, uint64_t ino)
{
    return atomic_load(&core->closed) ? SC_NEED(SC_NEED_CLOSED) : core_needs_names(core, ino);
}

static int64_t host_statfs(sc_core *core, struct statvfs *host)
{
    const char *folder = core->readers.live_dir;
    if (!folder || statvfs(folder, host))
        return SC_NEED(SC_NEED_PYTHON);
    size_limit_show(core, host);
    return 0;
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
    .find_inode = names_find_inode,
    .stat = names_stat,
    .lookup = names_lookup,
    .parent_of = names_parent_of,
    .readlink = names_readlink,
    .list = names_list,
    .getxattr = names_getxattr,
    .listxattr = names_listxattr,
    .create = names_create,
    .link = names_link,
    .remove = names_remove,
    .rename = names_rename,
    .may_be_orphan = names_may_be_orphan,
    .statfs = host_statfs,
    .refuses_writes = size_limit_refuses,
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "snapfs.live.content._content",
    .m_doc = "The bytes of files without the GIL; see content_api.h.",
    .m_size = -1,
};

/* `TEST_HOOKS`: whether this build has the functions of test_hooks.c, and the functions if so. */
static int add_test_hooks(PyObject *module)
{
#ifdef SNAPFS_TEST
    return PyModule_AddObjectRef(module, "TEST_HOOKS", Py_True) || PyModule_AddFunctions(module, test_hook_functions);
#else
    return PyModule_AddObjectRef(module, "TEST_HOOKS", Py_False);
#endif
}

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
    PyTypeObject *types[] = {&GuardType,       &DirtyMapType,  &LogFileType,    &SlotFileType, &FrozenType,
                             &DescriptorsType, &FileStateType, &FlushMarksType, &CoreType};
    PyObject *module = PyModule_Create(&definition);
    for (size_t i = 0; module && i < sizeof types / sizeof *types; i++)
        if (PyModule_AddType(module, types[i]))
            Py_CLEAR(module);
    PyObject *capsule = module ? PyCapsule_New((void *)(uintptr_t)&content_api, SC_CAPSULE, NULL) : NULL;
    if (module &&
        (!capsule || PyModule_AddObjectRef(module, "API", capsule) || add_test_hooks(module) ||
         PyModule_AddStringConstant(module, "SOURCES_HASH", SNAPFS_SOURCES_HASH) || add_methods(core_file_methods) ||
         add_methods(core_count_methods) || add_methods(core_attr_cache_methods) || add_methods(core_names_methods) ||
         add_methods(core_sharing_methods) || add_methods(core_size_limit_methods)))
        Py_CLEAR(module);
    Py_XDECREF(capsule);
    return module;
}
