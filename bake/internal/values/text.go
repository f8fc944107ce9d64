package values

import (
	"fmt"
	"strings"

	"github.com/kilnbuild/kiln/bake/internal/syntax"
	"github.com/tonistiigi/go-csvvalue"
	"github.com/zclconf/go-cty/cty"
	"github.com/zclconf/go-cty/cty/convert"
	ctyjson "github.com/zclconf/go-cty/cty/json"
)

// JSONSuffix is what the name of a variable ends with that has the value of another one in JSON.
const JSONSuffix = "_JSON"

// FromJSON returns a value of a type. A document that is nested deeply has no such value: types are not.
func FromJSON(text string, ty cty.Type) (cty.Value, error) {
	if err := syntax.CheckJSON([]byte(text)); err != nil {
		return cty.NilVal, err
	}
	v, err := ctyjson.Unmarshal([]byte(text), ty)
	if err == nil && syntax.SizeOf(v, syntax.MaxValue) > syntax.MaxValue {
		err = fmt.Errorf("it is larger than the %d MiB that are allowed", syntax.MaxValue>>20)
	}
	return v, err
}

// FromText returns the value of a type that a text has: for lists, sets and tuples comma separated values, for maps KEY:VALUE each.
func FromText(text string, ty cty.Type) (cty.Value, error) {
	switch {
	case ty.IsPrimitiveType():
		return primitive(text, ty)
	case !ty.IsListType() && !ty.IsSetType() && !ty.IsTupleType() && !ty.IsMapType():
		return cty.NilVal, fmt.Errorf("a %s cannot be given as text: give the variable a type, and its value in JSON as NAME%s",
			ty.FriendlyName(), JSONSuffix)
	}
	if !ty.IsTupleType() && !ty.ElementType().IsPrimitiveType() {
		return cty.NilVal, fmt.Errorf("a %s cannot be given as text: give its value in JSON as NAME%s", ty.FriendlyName(), JSONSuffix)
	}
	if text == "" {
		return cty.NilVal, fmt.Errorf("it is empty: give an empty %s in JSON as NAME%s", ty.FriendlyName(), JSONSuffix)
	}
	fields, err := csvvalue.Fields(text, nil)
	if err != nil {
		return cty.NilVal, fmt.Errorf("it is not a list of comma separated values: %w", err)
	}
	if ty.IsTupleType() && len(fields) != ty.Length() {
		return cty.NilVal, fmt.Errorf("it has %d values, and the type has %d", len(fields), ty.Length())
	}
	var items []cty.Value
	byKey := map[string]cty.Value{}
	for i, field := range fields {
		key := ""
		if ty.IsMapType() {
			var ok bool
			if key, field, ok = strings.Cut(field, ":"); !ok {
				return cty.NilVal, fmt.Errorf("%q is not KEY:VALUE", key)
			}
		}
		item, err := FromText(field, elementType(ty, i))
		if err != nil {
			return cty.NilVal, err
		}
		items = append(items, item)
		byKey[key] = item
	}
	if ty.IsMapType() {
		return cty.MapVal(byKey), nil
	}
	return convert.Convert(cty.TupleVal(items), ty)
}

// elementType returns the type of an element of a list, set, map or tuple.
func elementType(ty cty.Type, i int) cty.Type {
	if ty.IsTupleType() {
		return ty.TupleElementType(i)
	}
	return ty.ElementType()
}

// primitive returns the string, number or truth value of a text.
func primitive(text string, ty cty.Type) (cty.Value, error) {
	v := cty.StringVal(text)
	if ty == cty.Bool {
		switch text { // of strconv.ParseBool, which buildx uses, cty knows only two
		case "1", "t", "T", "TRUE", "True":
			v = cty.True
		case "0", "f", "F", "FALSE", "False":
			v = cty.False
		}
	}
	v, err := convert.Convert(v, ty)
	if err == nil && syntax.SizeOf(v, syntax.MaxValue) > syntax.MaxValue {
		err = fmt.Errorf("it is too large")
	}
	return v, err
}
