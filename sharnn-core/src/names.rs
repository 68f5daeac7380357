//! Names of the parameters in the published PyTorch model.

/// The published PyTorch model's name of a parameter, from its path in [`ShaRnn`](crate::ShaRnn), as in
/// `blocks.2.attending.attention.query.weight` -> `blocks.2.attn.q.weight`. The layouts are PyTorch's already, but for the
/// gates: vectors here, `[1, 1, d_model]` there.
///
/// ```
/// use sharnn_core::pytorch_name;
///
/// assert_eq!(pytorch_name("blocks.0.lstm.weight_hh"), "blocks.0.rnn.weight_hh_l0");
/// assert_eq!(pytorch_name("blocks.2.attending.attention.value_gate.linear.bias"), "blocks.2.attn.vq.l1.bias");
/// assert_eq!(pytorch_name("encoder.weight"), "encoder.weight");
/// ```
pub fn pytorch_name(path: &str) -> String {
    // The longer path stands before the one that it begins with.
    const RENAMED: [(&str, &str); 13] = [
        ("attending.attention.query_norm", "attn.qln"),
        ("attending.attention.query", "attn.q"),
        ("attending.attention.q_gate", "attn.qs"),
        ("attending.attention.k_gate", "attn.ks"),
        ("attending.attention.value_gate.gate", "attn.vs"),
        ("attending.attention.value_gate.linear", "attn.vq.l1"),
        ("attending.norm_mid", "lnmid"),
        ("attending.norm_mem", "lnmem"),
        ("norm_start", "lnstart"),
        ("norm_ff", "lnff"),
        ("norm_xff", "lnxff"),
        ("boom.linear", "ff.linear1"),
        ("lstm", "rnn"),
    ];
    let Some((block, rest)) = path
        .strip_prefix("blocks.")
        .and_then(|rest| rest.split_once('.'))
        .map(|(i, rest)| (format!("blocks.{i}"), rest))
    else {
        return path.to_string();
    };
    let renamed = RENAMED.iter().find_map(|(ours, theirs)| Some(format!("{theirs}{}", rest.strip_prefix(ours)?)));
    let suffix = if rest.starts_with("lstm.") { "_l0" } else { "" };
    format!("{block}.{}{suffix}", renamed.as_deref().unwrap_or(rest))
}
