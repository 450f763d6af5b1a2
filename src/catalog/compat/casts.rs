//! Types that Postgres has and Arrow has not.

use sqlparser::ast::{Array, ArrayElemTypeDef, DataType, Expr, ObjectName, ObjectNamePart, Value};

use super::{call, folded, take, text};

/// Types whose values are OIDs and whose text is a name.
const REG: [&str; 8] =
    ["regclass", "regtype", "regnamespace", "regrole", "regproc", "regprocedure", "regoper", "regoperator"];

/// `x::regclass` as an item of a SELECT list: shown as the name.
pub fn show_reg(expr: &mut Expr) {
    if let Expr::Cast { expr: inner, data_type, .. } = expr
        && let Some(reg) = reg_type(data_type)
    {
        let inner = take(inner);
        *expr = call(&format!("{reg}out"), vec![call(&format!("{reg}in"), vec![inner])]);
    }
}

/// `x::regclass::text`: the name.
pub fn reg_as_text(expr: &mut Expr) {
    if let Expr::Cast { expr: inner, data_type, .. } = expr
        && matches!(type_name(data_type).as_deref(), Some("text" | "varchar" | "name" | "character varying"))
    {
        show_reg(inner);
    }
}

/// A cast, its inner expression rewritten already.
pub fn rewrite(expr: &mut Expr) {
    let Expr::Cast { expr: inner, data_type, .. } = expr else { return };
    if let Some(reg) = reg_type(data_type) {
        *expr = call(&format!("{reg}in"), vec![take(inner)]);
        return;
    }
    if let DataType::Array(elem) = data_type {
        if let ArrayElemTypeDef::SquareBracket(elem, _) = elem {
            **elem = element_type(elem);
        }
        if let Expr::Value(value) = inner.as_ref()
            && let Value::SingleQuotedString(literal) = &value.value
            && let Some(items) = array_items(literal)
        {
            let elem = items.into_iter().map(|item| item.map_or_else(super::null, |item| text(&item))).collect();
            **inner = Expr::Array(Array { elem, named: true });
        }
        return;
    }
    let name = type_name(data_type);
    match name.as_deref() {
        Some("oid" | "xid" | "cid") => *expr = call("oidin", vec![take(inner)]),
        Some("name" | "sql_identifier") => *expr = call("namein", vec![take(inner)]),
        Some("\"char\"") => *expr = call("charin", vec![take(inner)]),
        Some(name) => {
            if let Some(plain) = plain_type(name) {
                *data_type = plain;
            }
        }
        None => {}
    }
}

fn reg_type(data_type: &DataType) -> Option<&'static str> {
    let name = type_name(data_type)?;
    let found = REG.into_iter().find(|reg| *reg == name)?;
    // Signatures are not kept: a procedure goes by its name alone. There are no operators.
    if found == "regprocedure" { Some("regproc") } else { Some(found) }
}

/// The name of a type that the parser does not know, without its schema; `"char"` keeps its quotes.
fn type_name(data_type: &DataType) -> Option<String> {
    match data_type {
        DataType::Regclass => Some("regclass".into()),
        DataType::Text => Some("text".into()),
        DataType::Varchar(None) => Some("varchar".into()),
        DataType::CharacterVarying(None) => Some("character varying".into()),
        DataType::Custom(name, modifiers) if modifiers.is_empty() => custom_name(name),
        _ => None,
    }
}

fn custom_name(name: &ObjectName) -> Option<String> {
    let last = name.0.last().and_then(ObjectNamePart::as_ident)?;
    Some(if last.quote_style.is_some() && last.value == "char" { "\"char\"".to_string() } else { folded(last) })
}

fn plain_type(name: &str) -> Option<DataType> {
    Some(match name {
        "text" | "cstring" | "unknown" | "bpchar" | "aclitem" | "pg_node_tree" => DataType::Text,
        "varchar" | "character varying" | "character_data" | "yes_or_no" => DataType::Varchar(None),
        "bool" => DataType::Boolean,
        "int2" => DataType::SmallInt(None),
        "int4" | "int" | "cardinal_number" => DataType::Int(None),
        "int8" => DataType::BigInt(None),
        "float4" => DataType::Real,
        "float8" => DataType::DoublePrecision,
        "bytea" => DataType::Bytea,
        "date" => DataType::Date,
        _ => return None,
    })
}

fn element_type(elem: &DataType) -> DataType {
    match type_name(elem).as_deref() {
        Some("oid" | "xid" | "cid") => DataType::BigInt(None),
        Some("name" | "\"char\"" | "sql_identifier") => DataType::Text,
        Some(name) if REG.contains(&name) => DataType::BigInt(None),
        Some(name) => plain_type(name).unwrap_or_else(|| elem.clone()),
        // `char[]` is an array of text of any length as far as comparisons go.
        None if matches!(elem, DataType::Char(None) | DataType::Character(None)) => DataType::Text,
        None => elem.clone(),
    }
}

/// The items of an array literal of one dimension, `{a,"b c",NULL}`; None if it is something else.
fn array_items(literal: &str) -> Option<Vec<Option<String>>> {
    let inner = literal.trim().strip_prefix('{')?.strip_suffix('}')?;
    let mut items = Vec::new();
    let mut chars = inner.chars().peekable();
    if inner.trim().is_empty() {
        return Some(items);
    }
    loop {
        while chars.next_if(|c| c.is_whitespace()).is_some() {}
        let mut item = String::new();
        let quoted = chars.next_if_eq(&'"').is_some();
        loop {
            match chars.peek() {
                None if quoted => return None,
                None => break,
                Some('"') if quoted => break,
                Some(',') if !quoted => break,
                Some('{' | '}' | '"') if !quoted => return None,
                Some('\\') => {
                    chars.next();
                    item.push(chars.next()?);
                }
                Some(_) => item.extend(chars.next()),
            }
        }
        if quoted {
            chars.next();
            while chars.next_if(|c| c.is_whitespace()).is_some() {}
            items.push(Some(item));
        } else {
            let item = item.trim_end();
            items.push((!item.eq_ignore_ascii_case("null")).then(|| item.to_string()));
        }
        match chars.next() {
            None => return Some(items),
            Some(',') => {}
            Some(_) => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn array_literals_are_read() {
        let some = |items: &[&str]| Some(items.iter().map(|item| Some(item.to_string())).collect::<Vec<_>>());
        assert_eq!(array_items("{r,p}"), some(&["r", "p"]));
        assert_eq!(array_items("{ \"a, \\\"b\" , c }"), some(&["a, \"b", "c"]));
        assert_eq!(array_items("{}"), some(&[]));
        assert_eq!(array_items("{NULL}"), Some(vec![None]));
        assert_eq!(array_items("{{1}}"), None);
        assert_eq!(array_items("r"), None);
    }
}
