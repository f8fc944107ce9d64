// Package values has the standard functions of bake definitions, and values that are written as text.
package values

import (
	"crypto/md5"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/hashicorp/hcl/v2/ext/tryfunc"
	"github.com/hashicorp/hcl/v2/ext/typeexpr"
	"github.com/kilnbuild/kiln/bake/internal/syntax"
	"github.com/zclconf/go-cty/cty"
	"github.com/zclconf/go-cty/cty/convert"
	"github.com/zclconf/go-cty/cty/function"
	"github.com/zclconf/go-cty/cty/function/stdlib"
	"golang.org/x/crypto/bcrypt"
	"golang.org/x/crypto/ssh"
)

// Limits of functions.
const (
	maxBcryptCost = 14    // of bcrypt: each step doubles the time, and 14 is about a second
	maxWidth      = 10000 // of a verb of format
	// maxResult bounds what a function may make before its result is measured, in bytes.
	maxResult = 64 << 20
)

// Functions returns the standard library. Functions whose result can be much larger than their arguments are guarded.
func Functions(m *syntax.Meter) map[string]function.Function {
	all := map[string]function.Function{
		"absolute": stdlib.AbsoluteFunc, "add": stdlib.AddFunc, "and": stdlib.AndFunc, "byteslen": stdlib.BytesLenFunc,
		"bytesslice": stdlib.BytesSliceFunc, "can": tryfunc.CanFunc, "ceil": stdlib.CeilFunc, "chomp": stdlib.ChompFunc,
		"chunklist": stdlib.ChunklistFunc, "coalesce": stdlib.CoalesceFunc, "coalescelist": stdlib.CoalesceListFunc,
		"compact": stdlib.CompactFunc, "concat": stdlib.ConcatFunc, "contains": stdlib.ContainsFunc, "convert": typeexpr.ConvertFunc,
		"csvdecode": stdlib.CSVDecodeFunc, "distinct": stdlib.DistinctFunc, "divide": stdlib.DivideFunc, "element": stdlib.ElementFunc,
		"equal": stdlib.EqualFunc, "flatten": stdlib.FlattenFunc, "floor": stdlib.FloorFunc, "format": stdlib.FormatFunc,
		"formatdate": stdlib.FormatDateFunc, "formatlist": stdlib.FormatListFunc, "greaterthan": stdlib.GreaterThanFunc,
		"greaterthanorequalto": stdlib.GreaterThanOrEqualToFunc, "hasindex": stdlib.HasIndexFunc, "indent": stdlib.IndentFunc,
		"index": stdlib.IndexFunc, "int": stdlib.IntFunc, "join": stdlib.JoinFunc, "jsondecode": stdlib.JSONDecodeFunc,
		"jsonencode": stdlib.JSONEncodeFunc, "keys": stdlib.KeysFunc, "length": stdlib.LengthFunc, "lessthan": stdlib.LessThanFunc,
		"lessthanorequalto": stdlib.LessThanOrEqualToFunc, "log": stdlib.LogFunc, "lookup": stdlib.LookupFunc, "lower": stdlib.LowerFunc,
		"max": stdlib.MaxFunc, "merge": stdlib.MergeFunc, "min": stdlib.MinFunc, "modulo": stdlib.ModuloFunc, "multiply": stdlib.MultiplyFunc,
		"negate": stdlib.NegateFunc, "not": stdlib.NotFunc, "notequal": stdlib.NotEqualFunc, "or": stdlib.OrFunc,
		"parseint": stdlib.ParseIntFunc, "pow": stdlib.PowFunc, "range": stdlib.RangeFunc, "regex": stdlib.RegexFunc,
		"regex_replace": stdlib.RegexReplaceFunc, "regexall": stdlib.RegexAllFunc, "replace": stdlib.ReplaceFunc, "reverse": stdlib.ReverseFunc,
		"reverselist": stdlib.ReverseListFunc, "sethaselement": stdlib.SetHasElementFunc, "setintersection": stdlib.SetIntersectionFunc,
		"setproduct": stdlib.SetProductFunc, "setsubtract": stdlib.SetSubtractFunc,
		"setsymmetricdifference": stdlib.SetSymmetricDifferenceFunc, "setunion": stdlib.SetUnionFunc, "signum": stdlib.SignumFunc,
		"slice": stdlib.SliceFunc, "sort": stdlib.SortFunc, "split": stdlib.SplitFunc, "strlen": stdlib.StrlenFunc, "substr": stdlib.SubstrFunc,
		"subtract": stdlib.SubtractFunc, "timeadd": stdlib.TimeAddFunc, "title": stdlib.TitleFunc, "trim": stdlib.TrimFunc,
		"trimprefix": stdlib.TrimPrefixFunc, "trimspace": stdlib.TrimSpaceFunc, "trimsuffix": stdlib.TrimSuffixFunc, "try": tryfunc.TryFunc,
		"upper": stdlib.UpperFunc, "values": stdlib.ValuesFunc, "zipmap": stdlib.ZipmapFunc,

		"base64decode": ofString(decode64),
		"base64encode": ofString(func(s string) (string, error) { return base64.StdEncoding.EncodeToString([]byte(s)), nil }),
		"basename":     ofString(func(s string) (string, error) { return filepath.Base(s), nil }),
		"dirname":      ofString(func(s string) (string, error) { return filepath.Dir(s), nil }),
		"md5":          ofString(func(s string) (string, error) { sum := md5.Sum([]byte(s)); return hex.EncodeToString(sum[:]), nil }),
		"sha1":         ofString(func(s string) (string, error) { sum := sha1.Sum([]byte(s)); return hex.EncodeToString(sum[:]), nil }),
		"sha256": ofString(func(s string) (string, error) {
			sum := sha256.Sum256([]byte(s))
			return hex.EncodeToString(sum[:]), nil
		}),
		"sha512": ofString(func(s string) (string, error) {
			sum := sha512.Sum512([]byte(s))
			return hex.EncodeToString(sum[:]), nil
		}),
		"sanitize":    ofString(func(s string) (string, error) { return Sanitized(s), nil }),
		"urlencode":   ofString(func(s string) (string, error) { return url.QueryEscape(s), nil }),
		"rsadecrypt":  ofStrings(decryptRSA),
		"uuidv5":      ofStrings(uuidV5),
		"homedir":     ofNothing(os.UserHomeDir),
		"timestamp":   ofNothing(func() (string, error) { return time.Now().UTC().Format(time.RFC3339), nil }),
		"uuidv4":      ofNothing(uuidV4),
		"indexof":     newFunc(cty.Number, indexOf, cty.DynamicPseudoType, cty.DynamicPseudoType),
		"semvercmp":   newFunc(cty.Bool, compareVersion, cty.String, cty.String),
		"bcrypt":      bcryptFunc(m),
		"cidrhost":    newFunc(cty.String, cidrHost, cty.String, cty.Number),
		"cidrnetmask": newFunc(cty.String, cidrNetmask, cty.String),
		"cidrsubnet":  newFunc(cty.String, cidrSubnet, cty.String, cty.Number, cty.Number),
		"cidrsubnets": cidrSubnetsFunc(),

		"formattimestamp":    newFunc(cty.String, formatTimestamp, cty.String, cty.DynamicPseudoType),
		"unixtimestampparse": newFunc(cty.DynamicPseudoType, parseTimestamp, cty.Number),
	}
	for name, size := range sizes() {
		all[name] = guarded(all[name], size)
	}
	for _, name := range []string{
		"distinct", "setintersection", "setproduct", "setsubtract", "setsymmetricdifference", "setunion", "sethaselement", "sort",
	} {
		all[name] = charged(m, name, all[name])
	}
	return all
}

// sizes say how large the result of a function can become, in bytes, or how many comparisons it takes.
func sizes() map[string]func(args []cty.Value) int64 {
	return map[string]func(args []cty.Value) int64{
		"join":          func(args []cty.Value) int64 { return times(countOf(args[1:]), stringSize(args[0])) },
		"replace":       func(args []cty.Value) int64 { return times(stringSize(args[0])+1, stringSize(args[2])) },
		"regex_replace": func(args []cty.Value) int64 { return times(2*(stringSize(args[0])+1), stringSize(args[2])+1) },
		"setproduct":    productSize,
		"format":        func(args []cty.Value) int64 { return times(formatSize(args[0]), contentSize(args[1:])+1) },
		"formatlist": func(args []cty.Value) int64 {
			return times(countOf(args[1:])+1, times(formatSize(args[0]), contentSize(args[1:])+1))
		},
		"indent": func(args []cty.Value) int64 {
			spaces, _ := args[0].AsBigFloat().Int64()
			return times(stringSize(args[1])+1, max(spaces, 0))
		},
		"distinct": func(args []cty.Value) int64 { return times(16*countOf(args), countOf(args)) },
	}
}

// guarded returns a function that is refused if its result would be too large.
func guarded(f function.Function, size func(args []cty.Value) int64) function.Function {
	return function.New(&function.Spec{
		Params: f.Params(), VarParam: f.VarParam(),
		Type: func(args []cty.Value) (cty.Type, error) { return f.ReturnTypeForValues(args) },
		Impl: func(args []cty.Value, _ cty.Type) (cty.Value, error) {
			if size(args) > maxResult {
				return cty.DynamicVal, fmt.Errorf("the result would be larger than the %d MiB that are allowed", syntax.MaxValue>>20)
			}
			return f.Call(args)
		},
	})
}

// charged returns a function that compares the elements of its arguments with each other, at worst each with all others, and is refused
// once such functions have taken too long together.
func charged(m *syntax.Meter, name string, f function.Function) function.Function {
	return function.New(&function.Spec{
		Params: f.Params(), VarParam: f.VarParam(),
		Type: func(args []cty.Value) (cty.Type, error) { return f.ReturnTypeForValues(args) },
		Impl: func(args []cty.Value, _ cty.Type) (cty.Value, error) {
			if err := m.Spend(times(countOf(args), contentSize(args)) / 4); err != nil {
				return cty.DynamicVal, fmt.Errorf("%s: %w", name, err)
			}
			return f.Call(args)
		},
	})
}

// times multiplies numbers that are not negative; what is too large stays too large.
func times(a, b int64) int64 {
	if a > 0 && b > maxResult*2/a {
		return maxResult * 2
	}
	return a * b
}

func stringSize(v cty.Value) int64 { return int64(len(v.AsString())) }

// contentSize returns the bytes of all values.
func contentSize(all []cty.Value) (n int64) {
	for _, v := range all {
		n += syntax.SizeOf(v, syntax.MaxValue)
	}
	return n
}

// countOf returns the number of elements of lists; other values count as one.
func countOf(all []cty.Value) (n int64) {
	for _, v := range all {
		if !v.IsNull() && v.CanIterateElements() {
			n += int64(v.LengthInt())
			continue
		}
		n++
	}
	return n
}

// productSize returns the size of the product of sets.
func productSize(args []cty.Value) int64 {
	n := int64(syntax.ElementSize)
	for _, v := range args {
		n = times(n, countOf([]cty.Value{v}))
	}
	return times(n, contentSize(args)/max(countOf(args), 1)*int64(len(args)))
}

// formatSize returns how often, at most, a format has its arguments, and how wide it makes them.
func formatSize(v cty.Value) int64 {
	n := stringSize(v) + 1
	for i, verb := range strings.Split(v.AsString(), "%") {
		end := strings.IndexFunc(verb, func(c rune) bool { return !strings.ContainsRune("0123456789+-# .[]*", c) })
		if i == 0 || end < 0 {
			continue
		}
		for _, number := range strings.FieldsFunc(verb[:end], func(c rune) bool { return c < '0' || c > '9' }) {
			width, err := strconv.Atoi(number)
			if err != nil || width > maxWidth {
				return maxResult * 2
			}
			n += int64(width)
		}
	}
	return n
}

// newFunc returns a function of values that are not null.
func newFunc(result cty.Type, f func(args []cty.Value) (cty.Value, error), params ...cty.Type) function.Function {
	spec := &function.Spec{
		Type: function.StaticReturnType(result),
		Impl: func(args []cty.Value, _ cty.Type) (cty.Value, error) { return f(args) },
	}
	for i, ty := range params {
		spec.Params = append(spec.Params, function.Parameter{Name: fmt.Sprintf("argument %d", i+1), Type: ty})
	}
	return function.New(spec)
}

func ofString(f func(string) (string, error)) function.Function {
	return newFunc(cty.String, func(args []cty.Value) (cty.Value, error) {
		s, err := f(args[0].AsString())
		return cty.StringVal(s), err
	}, cty.String)
}

func ofStrings(f func(a, b string) (string, error)) function.Function {
	return newFunc(cty.String, func(args []cty.Value) (cty.Value, error) {
		s, err := f(args[0].AsString(), args[1].AsString())
		return cty.StringVal(s), err
	}, cty.String, cty.String)
}

func ofNothing(f func() (string, error)) function.Function {
	return newFunc(cty.String, func([]cty.Value) (cty.Value, error) {
		s, err := f()
		return cty.StringVal(s), err
	})
}

func decode64(s string) (string, error) {
	data, err := base64.StdEncoding.DecodeString(s)
	if err != nil {
		return "", errors.New("it is not base64")
	}
	if !utf8.Valid(data) {
		return "", errors.New("it is the base64 of something that is not UTF-8 text")
	}
	return string(data), nil
}

// decryptRSA returns the text of base64 that was encrypted for a key in PEM.
func decryptRSA(text, key string) (string, error) {
	data, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		return "", errors.New("the first argument is not base64")
	}
	parsed, err := ssh.ParseRawPrivateKey([]byte(key))
	if err != nil {
		return "", errors.New("the second argument is not a private key")
	}
	private, ok := parsed.(*rsa.PrivateKey)
	if !ok {
		return "", errors.New("the second argument is not an RSA key")
	}
	//lint:ignore SA1019 rsadecrypt is defined as the inverse of this encryption, and is given one text
	plain, err := rsa.DecryptPKCS1v15(rand.Reader, private, data)
	if err != nil {
		return "", errors.New("the text is not encrypted for the key")
	}
	return string(plain), nil
}

// uuid returns the text of a UUID of a version (RFC 9562).
func uuid(b [16]byte, version byte) string {
	b[6] = b[6]&0x0f | version<<4
	b[8] = b[8]&0x3f | 0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

func uuidV4() (string, error) {
	var b [16]byte
	_, _ = rand.Read(b[:]) // it does not fail
	return uuid(b, 4), nil
}

// uuidV5 returns the UUID of a name in a name space: another UUID, or dns, url, oid or x500.
func uuidV5(space, name string) (string, error) {
	switch space {
	case "dns", "url", "oid", "x500":
		space = fmt.Sprintf("6ba7b81%d-9dad-11d1-80b4-00c04fd430c8", map[string]int{"dns": 0, "url": 1, "oid": 2, "x500": 4}[space])
	}
	id, err := hex.DecodeString(strings.ReplaceAll(space, "-", ""))
	if err != nil || len(id) != 16 {
		return "", fmt.Errorf("%q is not a UUID", space)
	}
	sum := sha1.Sum(append(id, name...))
	return uuid([16]byte(sum[:16]), 5), nil
}

// bcryptFunc hashes a password; its cost can be given.
func bcryptFunc(m *syntax.Meter) function.Function {
	return function.New(&function.Spec{
		Params:   []function.Parameter{{Name: "password", Type: cty.String}},
		VarParam: &function.Parameter{Name: "cost", Type: cty.Number},
		Type:     function.StaticReturnType(cty.String),
		Impl: func(args []cty.Value, _ cty.Type) (cty.Value, error) {
			cost := int64(bcrypt.DefaultCost)
			if len(args) > 1 {
				cost, _ = args[1].AsBigFloat().Int64()
			}
			if len(args) > 2 || cost > maxBcryptCost || cost < int64(bcrypt.MinCost) {
				return cty.DynamicVal, fmt.Errorf("it takes a password and a cost from %d to %d", bcrypt.MinCost, maxBcryptCost)
			}
			if err := m.Spend(1 << (cost + 12)); err != nil {
				return cty.DynamicVal, err
			}
			hash, err := bcrypt.GenerateFromPassword([]byte(args[0].AsString()), int(cost))
			return cty.StringVal(string(hash)), err
		},
	})
}

// indexOf returns where a list has a value.
func indexOf(args []cty.Value) (cty.Value, error) {
	ty := args[0].Type()
	if !ty.IsListType() && !ty.IsTupleType() {
		return cty.DynamicVal, errors.New("it is not a list")
	}
	for it := args[0].ElementIterator(); it.Next(); {
		i, v := it.Element()
		if equal, err := convertedEqual(v, args[1]); err == nil && equal {
			return i, nil
		}
	}
	return cty.DynamicVal, errors.New("the list does not have the value")
}

func convertedEqual(a, b cty.Value) (bool, error) {
	if !a.Type().Equals(b.Type()) {
		return false, nil
	}
	equal := a.Equals(b)
	return equal.IsKnown() && equal.True(), nil
}

// timeOf returns the time of an RFC 3339 timestamp, or of a number of seconds since 1970.
func timeOf(v cty.Value) (time.Time, error) {
	if v.Type() == cty.String {
		t, err := time.Parse(time.RFC3339, v.AsString())
		if err != nil {
			err = fmt.Errorf("%q is not an RFC 3339 timestamp", v.AsString())
		}
		return t, err
	}
	n, err := convert.Convert(v, cty.Number)
	if err != nil || n.IsNull() {
		return time.Time{}, errors.New("it is neither an RFC 3339 timestamp nor a number of seconds")
	}
	seconds, accuracy := n.AsBigFloat().Int64()
	const year9999 = 253402300799
	if accuracy != big.Exact || seconds > year9999 || seconds < -year9999 {
		return time.Time{}, errors.New("it is not a number of seconds since 1970 that is a time")
	}
	return time.Unix(seconds, 0).UTC(), nil
}

// formatTimestamp formats a time as formatdate does. The format X is the number of seconds since 1970.
func formatTimestamp(args []cty.Value) (cty.Value, error) {
	t, err := timeOf(args[1])
	if err != nil {
		return cty.DynamicVal, function.NewArgError(1, err)
	}
	if args[0].AsString() == "X" {
		return cty.StringVal(strconv.FormatInt(t.Unix(), 10)), nil
	}
	return stdlib.FormatDate(args[0], cty.StringVal(t.Format(time.RFC3339)))
}

// parseTimestamp returns the parts of a time.
func parseTimestamp(args []cty.Value) (cty.Value, error) {
	t, err := timeOf(args[0])
	if err != nil {
		return cty.DynamicVal, err
	}
	year, week := t.ISOWeek()
	n := func(i int) cty.Value { return cty.NumberIntVal(int64(i)) }
	return cty.ObjectVal(map[string]cty.Value{
		"year": n(t.Year()), "year_day": n(t.YearDay()), "day": n(t.Day()), "month": n(int(t.Month())),
		"month_name": cty.StringVal(t.Month().String()), "weekday": n(int(t.Weekday())), "weekday_name": cty.StringVal(t.Weekday().String()),
		"hour": n(t.Hour()), "minute": n(t.Minute()), "second": n(t.Second()), "rfc3339": cty.StringVal(t.Format(time.RFC3339)),
		"iso_year": n(year), "iso_week": n(week),
	}), nil
}

// Sanitized returns a name in which everything that names of targets do not have is "_".
func Sanitized(name string) string {
	return strings.Map(func(c rune) rune {
		if c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '_' || c == '-' {
			return c
		}
		return '_'
	}, name)
}

// List returns a list of strings.
func List(list []string) cty.Value {
	if len(list) == 0 {
		return cty.ListValEmpty(cty.String)
	}
	var items []cty.Value
	for _, s := range list {
		items = append(items, cty.StringVal(s))
	}
	return cty.ListVal(items)
}
