package canonical_test

import (
	"encoding/json"
	"errors"
	"math"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/gowebpki/jcs"
	"pgregory.net/rapid"

	"github.com/crossfade-io/crossfade/pipeline/canonical"
)

func canon(t testing.TB, src string) string {
	t.Helper()
	var d canonical.Doc
	if err := d.Parse([]byte(src)); err != nil {
		t.Fatalf("Parse(%q): %v", src, err)
	}
	return string(d.Root().AppendCanonical(nil))
}

func TestCanonicalForm(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{`{}`, `{}`},
		{` [ ] `, `[]`},
		{`{"b":1,"a":2}`, `{"a":2,"b":1}`},
		{`{"a":1,"b":2,"a":3}`, `{"a":3,"b":2}`},
		{`[1.0,1e2,-0,-0.0,0.10,1E-7,1e21,100000000000000000000,0.000001,123456789012345680000]`,
			`[1,100,0,0,0.1,1e-7,1e+21,100000000000000000000,0.000001,123456789012345680000]`},
		{`[9007199254740993,333333333.33333329,4.50,2e-3,0.000000000000000000000000001]`,
			`[9007199254740992,333333333.3333333,4.5,0.002,1e-27]`},
		{`[1e400,-1e400,5e-324]`, `[1e999,-1e999,5e-324]`},
		// RFC 8785, section 3.2.2
		{`{"numbers":[333333333.33333329,1E30,4.50,2e-3,0.000000000000000000000000001],"string":"\u20ac$\u000F\u000aA'\u0042\u0022\u005c\\\"\/","literals":[null,true,false]}`,
			`{"literals":[null,true,false],"numbers":[333333333.3333333,1e+30,4.5,0.002,1e-27],"string":"€$\u000f\nA'B\"\\\\\"/"}`},
		// RFC 8785, section 3.2.3
		{`{"\u20ac":"Euro Sign","\r":"Carriage Return","\ufb33":"Hebrew Letter Dalet With Dagesh","1":"One","\ud83d\ude00":"Emoji: Grinning Face","\u0080":"Control","\u00f6":"Latin Small Letter O With Diaeresis"}`,
			"{\"\\r\":\"Carriage Return\",\"1\":\"One\",\"\u0080\":\"Control\",\"ö\":\"Latin Small Letter O With Diaeresis\",\"€\":\"Euro Sign\",\"😀\":\"Emoji: Grinning Face\",\"\ufb33\":\"Hebrew Letter Dalet With Dagesh\"}"},
		{`"\ud800\u0041\uDFFF"`, `"\ud800A\udfff"`},
		{`"\u0000\u001f\u007f"`, "\"\\u0000\\u001f\u007f\""},
	} {
		if got := canon(t, c.in); got != c.want {
			t.Errorf("canonical form of %s:\n got %s\nwant %s", c.in, got, c.want)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	for _, in := range []string{
		``, ` `, `{`, `}`, `[`, `{"a"}`, `{"a":}`, `{"a":1,}`, `[1,]`, `[,1]`, `{,}`, `{a:1}`, `{'a':1}`, `{"a":1}x`, `{"a":1} {"a":1}`,
		`01`, `-`, `+1`, `.5`, `1.`, `1e`, `1e+`, `0x10`, `NaN`, `Infinity`, `-Infinity`, `tru`, `nul`, `True`,
		"\"\n\"", `"`, `"\"`, `"\x"`, `"\u12"`, `"\u12G4"`, "\"\xff\"", "\"\xed\xa0\x80\"", "\"\xc0\x80\"", "\xef\xbb\xbf{}",
		strings.Repeat("[", canonical.MaxDepth+1) + strings.Repeat("]", canonical.MaxDepth+1),
		strings.Repeat(`{"a":`, 100_000) + "1" + strings.Repeat("}", 100_000),
	} {
		var d canonical.Doc
		if err := d.Parse([]byte(in)); !errors.Is(err, canonical.ErrInvalid) {
			t.Errorf("Parse(%.40q) = %v, want ErrInvalid", in, err)
		}
	}
	deep := strings.Repeat("[", canonical.MaxDepth) + strings.Repeat("]", canonical.MaxDepth)
	if got := canon(t, deep); got != deep {
		t.Error("nesting of MaxDepth must be accepted")
	}
}

func TestValues(t *testing.T) {
	var d canonical.Doc
	src := `{"s":"a\u0062","Seq":1,"seq":12,"f":-2.9,"big":9007199254740993,"max":9223372036854774784,"min":-9223372036854775808,"over":9223372036854775807,"n":null,"o":{"x":1,"y":2,"x":3},"seq":13,"e":1e3,"inf":1e400}`
	if err := d.Parse([]byte(src)); err != nil {
		t.Fatal(err)
	}
	root := d.Root()
	if s, ok := root.Get("s").Text(); s != "ab" || !ok {
		t.Errorf("s = %q, %v", s, ok)
	}
	for name, want := range map[string]int64{"seq": 13, "f": -2, "big": 1 << 53, "max": 9223372036854774784, "min": math.MinInt64, "e": 1000} {
		if n, ok := root.Get(name).Int(); n != want || !ok {
			t.Errorf("%s = %d, %v; want %d", name, n, ok, want)
		}
	}
	for _, name := range []string{"over", "s", "n", "o", "absent", "inf"} {
		if n, ok := root.Get(name).Int(); ok {
			t.Errorf("%s.Int() = %d, want none", name, n)
		}
	}
	if !root.Get("n").IsNull() || !root.Get("absent").IsNull() || root.Get("s").IsNull() {
		t.Error("IsNull")
	}
	var names []string
	for name, v := range root.Get("o").Members() {
		n, _ := v.Int()
		names = append(names, name, string(rune('0'+n)))
	}
	if got := strings.Join(names, ""); got != "x3y2" {
		t.Errorf("members = %s", got)
	}
	for src, want := range map[string]bool{
		`{"a":"x"}`: true, `{"a":"\u0000"}`: false, `{"\u0000":1}`: false, `["\ud800"]`: false, `[1e400]`: false,
		`{"a":1e400,"a":1}`: true, `{"a":"\ud83d\ude00"}`: true, `1e308`: true,
	} {
		if err := d.Parse([]byte(src)); err != nil {
			t.Fatal(err)
		}
		if _, ok := d.Root().AppendStorable(nil); ok != want {
			t.Errorf("storable %s = %v, want %v", src, ok, want)
		}
	}
	var none canonical.Value
	if none.Get("x").Kind() != canonical.KindNone || none.Len() != 0 || string(none.AppendCanonical(nil)) != "null" {
		t.Error("the zero Value")
	}
}

func TestEachNumber(t *testing.T) {
	var d canonical.Doc
	if err := d.Parse([]byte(`{"a":[1e-16383,{"b":-0.50,"2":"3"}],"c":4,"c":5}`)); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		v    canonical.Value
		want string
	}{{d.Root(), "1e-16383 -0.50 4 5"}, {d.Root().Get("a"), "1e-16383 -0.50"}, {d.Root().Get("c"), "5"}, {canonical.Value{}, ""}} {
		var got []string
		c.v.EachNumber(func(literal string) { got = append(got, literal) })
		if strings.Join(got, " ") != c.want {
			t.Errorf("%v, want %s", got, c.want)
		}
	}
}

// FuzzAgreesWithJCS holds our parser and writer against a second implementation
// of RFC 8785, and our idea of validity against encoding/json's.
func FuzzAgreesWithJCS(f *testing.F) {
	for _, s := range []string{
		`{"ts":"2026-02-09T09:15:23.045Z","site_id":"s1","seq":123,"metrics":{"temp_c":22.5,"door_open":true,"mode":"eco"}}`,
		`{"\u20ac":1,"\ud83d\ude00":[1e21,1e-7,0.1,-0],"\ufb33":"\b\f\n\r\t\u000f"}`, `[1,[2,[3]],{"a":{"b":{}}}]`, `"\u0000"`, `{"a":1,"a":2}`, `1e999`, `-0.0`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, src []byte) {
		var d canonical.Doc
		err := d.Parse(src)
		if valid := json.Valid(src) && utf8.Valid(src); (err == nil) != valid {
			if err != nil && strings.Contains(err.Error(), "nested too deeply") {
				return
			}
			t.Fatalf("Parse(%q) = %v, but encoding/json says valid=%v", src, err, valid)
		}
		if err != nil {
			return
		}
		got, ok := d.Root().AppendStorable(nil)
		var again canonical.Doc
		if err := again.Parse(got); err != nil {
			t.Fatalf("the canonical form %q of %q is no JSON: %v", got, src, err)
		}
		if twice := again.Root().AppendCanonical(nil); string(twice) != string(got) {
			t.Fatalf("not a fixed point: %q, then %q", got, twice)
		}
		if k := d.Root().Kind(); k != canonical.KindObject && k != canonical.KindArray || !ok {
			return // jcs takes only these, and what I-JSON allows
		}
		want, err := jcs.Transform(src)
		if err != nil {
			return // duplicates and the like, which RFC 8785 refuses
		}
		if string(want) != string(got) {
			t.Fatalf("%q:\nours %s\n jcs %s", src, got, want)
		}
	})
}

// jsonValue draws a document as text with random spacing, escapes and member order.
func jsonValue(depth int) *rapid.Generator[any] {
	leaf := []*rapid.Generator[any]{
		rapid.Just[any](nil), rapid.Bool().AsAny(), rapid.Float64().AsAny(), rapid.Int64().AsAny(), rapid.String().AsAny(),
	}
	if depth == 0 {
		return rapid.OneOf(leaf...)
	}
	return rapid.OneOf(append(leaf,
		rapid.SliceOfN(jsonValue(depth-1), 0, 5).AsAny(),
		rapid.MapOfN(rapid.String(), jsonValue(depth-1), 0, 6).AsAny())...)
}

// TestSerializerDoesNotMatter is what identity needs: whichever way a document
// is written, its canonical form is the same.
func TestSerializerDoesNotMatter(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v := rapid.MapOfN(rapid.String(), jsonValue(2), 0, 6).Draw(t, "document")
		plain, err := json.Marshal(v)
		if err != nil {
			t.Skip("not a JSON document")
		}
		indented, _ := json.MarshalIndent(v, " ", "\t")
		var a, b canonical.Doc
		if err := errors.Join(a.Parse(plain), b.Parse(indented)); err != nil {
			t.Fatal(err)
		}
		want, err := jcs.Transform(plain)
		if err != nil {
			t.Skip("jcs refuses it: ", err)
		}
		x, y := a.Root().AppendCanonical(nil), b.Root().AppendCanonical(nil)
		if string(x) != string(y) || string(x) != string(want) {
			t.Fatalf("%s\n%s\n%s", x, y, want)
		}
	})
}

func BenchmarkParseAndCanonicalize(b *testing.B) {
	src := []byte(`{"ts":"2026-02-09T09:15:23.045Z","site_id":"site-1","seq":123456,"tenant_id":"tenant-01","provision_token":"tok-0123456789abcdef","version":"1","lat":52.1,"lng":4.3,"metrics":{"temp_c":22.5,"humidity_pct":41.7,"battery_v":3.61,"door_open":true,"mode":"eco","rssi_dbm":-67}}`)
	var d canonical.Doc
	var out []byte
	b.SetBytes(int64(len(src)))
	b.ReportAllocs()
	for b.Loop() {
		if err := d.Parse(src); err != nil {
			b.Fatal(err)
		}
		out = d.Root().AppendCanonical(out[:0])
	}
}
