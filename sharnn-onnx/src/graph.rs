//! A graph under construction: nodes, inputs, outputs and tensors, each value known by its name.

use crate::OnnxError;
use crate::file::{Initializer, Values};
use crate::proto::{self, Attribute, AttributeKind, DataType, Dim, Dimension};

/// The name of a value in the graph.
#[derive(Clone, Debug)]
pub(crate) struct Value(String);

/// A dimension of an input or output.
#[derive(Clone, Copy)]
pub(crate) enum Size {
    /// As many as this.
    Fixed(usize),
    /// As many as there are when the graph runs, under this name.
    Dynamic(&'static str),
}

/// A graph under construction. A node's first output bears the node's name.
#[derive(Default)]
pub(crate) struct Graph<'a> {
    pub(crate) proto: proto::Graph,
    pub(crate) tensors: Vec<Initializer<'a>>,
}

pub(crate) fn float(name: &str, value: f32) -> Attribute {
    Attribute { name: name.into(), f: Some(value), kind: AttributeKind::Float.into(), ..Default::default() }
}

pub(crate) fn int(name: &str, value: i64) -> Attribute {
    Attribute { name: name.into(), i: Some(value), kind: AttributeKind::Int.into(), ..Default::default() }
}

pub(crate) fn ints(name: &str, values: &[i64]) -> Attribute {
    Attribute { name: name.into(), ints: values.into(), kind: AttributeKind::Ints.into(), ..Default::default() }
}

fn info(name: &str, elem_type: DataType, shape: &[Size], doc_string: String) -> proto::ValueInfo {
    let dim = |size: &Size| Dimension {
        value: Some(match *size {
            Size::Fixed(size) => Dim::Value(size as i64),
            Size::Dynamic(name) => Dim::Param(name.into()),
        }),
    };
    let shape = proto::Shape { dim: shape.iter().map(dim).collect() };
    let tensor_type = proto::TensorType { elem_type: elem_type.into(), shape: Some(shape) };
    let r#type = Some(proto::Type { tensor_type: Some(tensor_type) });
    proto::ValueInfo { name: name.into(), r#type, doc_string }
}

impl<'a> Graph<'a> {
    pub(crate) fn input(&mut self, name: &str, elem_type: DataType, shape: &[Size], doc_string: String) -> Value {
        self.proto.input.push(info(name, elem_type, shape, doc_string));
        Value(name.into())
    }

    /// Makes a value an output of the graph, under its own name.
    pub(crate) fn output(&mut self, value: &Value, elem_type: DataType, shape: &[Size], doc_string: String) {
        self.proto.output.push(info(&value.0, elem_type, shape, doc_string));
    }

    /// A node of one output.
    pub(crate) fn node(&mut self, name: &str, op: &str, inputs: &[&Value], attributes: Vec<Attribute>) -> Value {
        let [output] = self.node_of(name, op, inputs, [""], attributes);
        output
    }

    /// A node of several outputs, named after the node and these.
    pub(crate) fn node_of<const N: usize>(
        &mut self,
        name: &str,
        op: &str,
        inputs: &[&Value],
        outputs: [&str; N],
        attribute: Vec<Attribute>,
    ) -> [Value; N] {
        let outputs = outputs.map(|output| Value(format!("{name}{output}")));
        self.proto.node.push(proto::Node {
            input: inputs.iter().map(|input| input.0.clone()).collect(),
            output: outputs.iter().map(|output| output.0.clone()).collect(),
            name: name.into(),
            op_type: op.into(),
            attribute,
        });
        outputs
    }

    /// An input of a node that is left out.
    pub(crate) fn absent() -> Value {
        Value(String::new())
    }

    /// A tensor whose values are computed when they are written.
    pub(crate) fn tensor(
        &mut self,
        name: &str,
        dims: &[usize],
        values: impl Fn() -> Result<Vec<f32>, OnnxError> + 'a,
    ) -> Value {
        self.initializer(name, dims, Values::F32(Box::new(values)))
    }

    /// The same, kept in f16 and widened where it is used.
    pub(crate) fn half_tensor(
        &mut self,
        name: &str,
        dims: &[usize],
        values: impl Fn() -> Result<Vec<f32>, OnnxError> + 'a,
    ) -> Value {
        self.initializer(name, dims, Values::F16(Box::new(values)))
    }

    /// A list of integers.
    pub(crate) fn list(&mut self, name: &str, values: &[i64]) -> Value {
        self.initializer(name, &[values.len()], Values::I64(values.into()))
    }

    /// An integer.
    pub(crate) fn integer(&mut self, name: &str, value: i64) -> Value {
        self.initializer(name, &[], Values::I64(vec![value]))
    }

    /// A number.
    pub(crate) fn scalar(&mut self, name: &str, value: f32) -> Value {
        self.initializer(name, &[], Values::F32(Box::new(move || Ok(vec![value]))))
    }

    fn initializer(&mut self, name: &str, dims: &[usize], values: Values<'a>) -> Value {
        self.tensors.push(Initializer { name: name.into(), dims: dims.into(), values });
        Value(name.into())
    }
}
