/* Makes named tuples. tuple.__new__ and the constructor that a named tuple has as text do the same in five
   times as many steps. tools/compile.py compiles this, for kvstore_codec.py (see make_codec.py). */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#define PLACES 256 /* far more than there are structs, so that most are at the first that is looked at */

static struct {
    PyTypeObject *kind;  /* NULL: this place is free */
    PyObject *fields;    /* their names */
    Py_ssize_t required; /* so many of them, the first, have no default; of the others it is None */
} adopted[PLACES];
static int count = 0;

/* Where this type is, or a free place for it. */
static int
place(PyTypeObject *kind)
{
    int at = ((size_t)kind >> 6) % PLACES;
    while (adopted[at].kind != NULL && adopted[at].kind != kind)
        at = (at + 1) % PLACES;
    return at;
}

/* A tuple of this type whose items are NULL. */
static PyObject *
empty(PyTypeObject *kind, Py_ssize_t size)
{
    PyObject *made = kind->tp_alloc(kind, size);
#if PY_VERSION_HEX >= 0x030E0000
    if (made != NULL)
        ((PyTupleObject *)made)->ob_hash = -1; /* it is not computed yet */
#endif
    return made;
}

/* Call a named tuple's type. */
static PyObject *
construct(PyObject *type, PyObject *const *given, size_t flags, PyObject *names)
{
    int at = place((PyTypeObject *)type);
    PyObject *fields = adopted[at].fields;
    Py_ssize_t size = PyTuple_GET_SIZE(fields), positional = PyVectorcall_NARGS(flags);
    Py_ssize_t named = names == NULL ? 0 : PyTuple_GET_SIZE(names);
    int fits = positional <= size;
    PyObject *made = fits ? empty(adopted[at].kind, size) : NULL;
    if (fits && made == NULL)
        return NULL;
    for (Py_ssize_t i = 0; fits && i < positional; i++)
        PyTuple_SET_ITEM(made, i, Py_NewRef(given[i]));
    for (Py_ssize_t i = 0; fits && i < named; i++) {
        PyObject *name = PyTuple_GET_ITEM(names, i);
        Py_ssize_t field = positional;
        while (field < size && name != PyTuple_GET_ITEM(fields, field)
               && PyUnicode_Compare(name, PyTuple_GET_ITEM(fields, field)) != 0)
            field++;
        fits = field < size && PyTuple_GET_ITEM(made, field) == NULL;
        if (fits)
            PyTuple_SET_ITEM(made, field, Py_NewRef(given[positional + i]));
    }
    for (Py_ssize_t i = positional; fits && i < size; i++)
        if (PyTuple_GET_ITEM(made, i) == NULL) {
            fits = i >= adopted[at].required;
            PyTuple_SET_ITEM(made, i, Py_NewRef(Py_None));
        }
    if (fits)
        return made;
    Py_XDECREF(made);
    return PyErr_Format(PyExc_TypeError, "%s: a field is missing, unknown, or given twice",
                        adopted[at].kind->tp_name);
}

/* adopt(kind, fields, required): let calls of this named tuple's type be made by construct(). */
static PyObject *
adopt(PyObject *module, PyObject *arguments)
{
    PyObject *kind, *fields;
    Py_ssize_t required;
    if (!PyArg_ParseTuple(arguments, "O!O!n", &PyType_Type, &kind, &PyTuple_Type, &fields, &required))
        return NULL;
    if (count >= PLACES / 2 || !PyType_HasFeature((PyTypeObject *)kind, Py_TPFLAGS_TUPLE_SUBCLASS))
        return PyErr_Format(PyExc_TypeError, "adopt: too many, or no tuple's type");
    int at = place((PyTypeObject *)kind);
    count += adopted[at].kind == NULL;
    adopted[at].kind = (PyTypeObject *)Py_NewRef(kind);
    adopted[at].fields = Py_NewRef(fields);
    adopted[at].required = required;
    ((PyTypeObject *)kind)->tp_vectorcall = construct;
    Py_RETURN_NONE;
}

/* new(kind, *fields): a tuple of this type with all its fields. */
static PyObject *
new(PyObject *module, PyObject *const *given, Py_ssize_t size)
{
    PyTypeObject *kind = size > 0 && PyType_Check(given[0]) ? (PyTypeObject *)given[0] : NULL;
    if (kind == NULL || !PyType_HasFeature(kind, Py_TPFLAGS_TUPLE_SUBCLASS))
        return PyErr_Format(PyExc_TypeError, "new: the first argument is no tuple's type");
    PyObject *made = empty(kind, size - 1);
    for (Py_ssize_t i = 1; made != NULL && i < size; i++)
        PyTuple_SET_ITEM(made, i - 1, Py_NewRef(given[i]));
    return made;
}

static PyMethodDef methods[] = {
    {"adopt", adopt, METH_VARARGS, NULL},
    {"new", (PyCFunction)(void (*)(void))new, METH_FASTCALL, NULL},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "new_struct", NULL, -1, methods};

PyMODINIT_FUNC
PyInit_new_struct(void)
{
    return PyModule_Create(&module);
}
