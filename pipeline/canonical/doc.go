// Package canonical reads JSON strictly and writes it in the canonical form of
// RFC 8785 (JCS), so that two copies of one message that went through different
// serializers come out as the same bytes.
//
// It is a package of our own because message identity hangs on it: the forgiving
// parsers match member names without regard to case, accept invalid documents or
// replace what they can't represent, and each of those would let one path see a
// different message than the other (docs/identity.md).
//
// Where RFC 8785 leaves a document without a canonical form, we define one, since
// hostile messages need an identity too:
//
//   - of duplicate members the last one counts, as in the serializers in the field;
//   - a lone surrogate keeps its escape, in lower case;
//   - a number beyond the range of a double is written as 1e999 or -1e999.
//
// [Value.AppendStorable] tells whether a value holds one of the last two, or
// U+0000, which PostgreSQL's jsonb would refuse.
package canonical
