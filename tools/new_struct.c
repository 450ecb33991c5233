/* Makes a named tuple from its fields. tuple.__new__ does the same in five times as many steps, for it first
   packs them into a tuple. tools/compile.py compiles this for kvstore_codec.py (see make_codec.py). */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

static PyObject *
new(PyObject *module, PyObject *const *arguments, Py_ssize_t count)
{
    PyTypeObject *kind = count > 0 && PyType_Check(arguments[0]) ? (PyTypeObject *)arguments[0] : NULL;
    if (kind == NULL || !PyType_HasFeature(kind, Py_TPFLAGS_TUPLE_SUBCLASS)) {
        PyErr_SetString(PyExc_TypeError, "new: the first argument is no tuple's type");
        return NULL;
    }
    PyObject *made = kind->tp_alloc(kind, count - 1);
    for (Py_ssize_t i = 1; made != NULL && i < count; i++)
        PyTuple_SET_ITEM(made, i - 1, Py_NewRef(arguments[i]));
    return made;
}

static PyMethodDef methods[] = {
    {"new", (PyCFunction)(void (*)(void))new, METH_FASTCALL, "new(kind, *fields)"},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "new_struct", NULL, -1, methods};

PyMODINIT_FUNC
PyInit_new_struct(void)
{
    return PyModule_Create(&module);
}
