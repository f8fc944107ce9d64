package syntax

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/zclconf/go-cty/cty"
)

// Files in JSON become the syntax tree that the same file in HCL would have: strings are templates, and what is an attribute or a block
// follows from where it is. The expressions of HCL's own JSON package parse strings while they are evaluated, where no limit reaches them.

// jsonValue is a value of a JSON document with its place.
type jsonValue struct {
	// value is a string, a json.Number, a bool, nil, a []jsonValue or a []jsonMember: members may have the same name.
	value any
	at    hcl.Range
}

type jsonMember struct {
	name  string
	at    hcl.Range
	value jsonValue
}

// jsonReader reads a document as values with places.
type jsonReader struct {
	name    string
	data    []byte
	decoder *json.Decoder
	// at, line and column are where the reader has counted lines up to.
	at, line, column int
	depth            int
}

// readJSON returns the value of a document.
func readJSON(name string, data []byte) (jsonValue, error) {
	r := &jsonReader{name: name, data: data, decoder: json.NewDecoder(bytes.NewReader(data)), line: 1, column: 1}
	r.decoder.UseNumber()
	v, err := r.value()
	if err != nil {
		return v, r.failed(err)
	}
	if _, err := r.decoder.Token(); !errors.Is(err, io.EOF) {
		if err == nil {
			err = errors.New("there is something after the end of the document")
		}
		return v, r.failed(err)
	}
	return v, nil
}

// failed returns an error with the place that the reader has reached.
func (r *jsonReader) failed(err error) error {
	offset := int(r.decoder.InputOffset())
	if syntax, ok := errors.AsType[*json.SyntaxError](err); ok {
		offset = max(int(syntax.Offset)-1, 0)
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		err = errors.New("the document ends before it is complete")
	}
	return fmt.Errorf("%s:%d: invalid JSON: %w", r.name, r.place(offset).Line, err)
}

// place returns the position of an offset. Offsets rise from call to call, except for errors.
func (r *jsonReader) place(offset int) hcl.Pos {
	offset = min(offset, len(r.data))
	if offset < r.at {
		r.at, r.line, r.column = 0, 1, 1
	}
	for ; r.at < offset; r.at++ {
		if r.data[r.at] == '\n' {
			r.line, r.column = r.line+1, 0
		}
		r.column++
	}
	return hcl.Pos{Line: r.line, Column: r.column, Byte: offset}
}

// token returns the next token and its place.
func (r *jsonReader) token() (json.Token, hcl.Range, error) {
	start := int(r.decoder.InputOffset())
	for start < len(r.data) && bytes.IndexByte([]byte(" \t\r\n,:"), r.data[start]) >= 0 {
		start++
	}
	t, err := r.decoder.Token()
	if err != nil {
		return nil, hcl.Range{}, err
	}
	return t, hcl.Range{Filename: r.name, Start: r.place(start), End: r.place(int(r.decoder.InputOffset()))}, nil
}

func (r *jsonReader) value() (jsonValue, error) {
	t, at, err := r.token()
	if err != nil {
		return jsonValue{}, err
	}
	delim, ok := t.(json.Delim)
	if !ok {
		return jsonValue{t, at}, nil
	}
	if r.depth++; r.depth > maxNesting {
		return jsonValue{}, fmt.Errorf("values are nested more deeply than %d", maxNesting)
	}
	defer func() { r.depth-- }()
	if delim == '[' {
		items := []jsonValue{}
		for r.decoder.More() {
			item, err := r.value()
			if err != nil {
				return jsonValue{}, err
			}
			items = append(items, item)
		}
		_, err := r.decoder.Token()
		return jsonValue{items, at}, err
	}
	members := []jsonMember{}
	for r.decoder.More() {
		key, keyAt, err := r.token()
		if err != nil {
			return jsonValue{}, err
		}
		v, err := r.value()
		if err != nil {
			return jsonValue{}, err
		}
		members = append(members, jsonMember{key.(string), keyAt, v}) // the decoder takes nothing else there
	}
	_, err = r.decoder.Token()
	return jsonValue{members, at}, err
}

// CheckJSON returns an error unless data is a JSON document that is not nested too deeply.
func CheckJSON(data []byte) error {
	_, err := readJSON("", data)
	return err
}

// HasMember reports whether data is a JSON object with a member of the name.
func HasMember(data []byte, name string) bool {
	v, err := readJSON("", data)
	members, _ := v.value.([]jsonMember)
	return err == nil && slices.ContainsFunc(members, func(m jsonMember) bool { return m.name == name })
}

// parseJSON returns the body of a file in JSON.
func parseJSON(name string, data []byte) (*hclsyntax.Body, error) {
	v, err := readJSON(name, data)
	if err != nil {
		return nil, err
	}
	members, ok := v.value.([]jsonMember)
	if !ok {
		return nil, fmt.Errorf("%s:%d: the document is not an object", name, v.at.Start.Line)
	}
	c := &jsonConverter{shape: &shape{}}
	body := &hclsyntax.Body{Attributes: hclsyntax.Attributes{}, SrcRange: v.at}
	for _, m := range members {
		if !IsBlock(m.name) {
			err = c.attribute(body, m)
		} else {
			err = c.blocks(body, m)
		}
		if err != nil {
			return nil, err
		}
	}
	return body, nil
}

// jsonConverter makes syntax trees of JSON values.
type jsonConverter struct{ shape *shape }

// objects returns the objects that a value is or has as items.
func objects(v jsonValue, what string) ([][]jsonMember, error) {
	items, ok := v.value.([]jsonValue)
	if !ok {
		items = []jsonValue{v}
	}
	var all [][]jsonMember
	for _, item := range items {
		members, ok := item.value.([]jsonMember)
		if !ok {
			return nil, fmt.Errorf("%s:%d: %s is not an object", item.at.Filename, item.at.Start.Line, what)
		}
		all = append(all, members)
	}
	return all, nil
}

// blocks adds the blocks of one type, which are objects by their labels.
func (c *jsonConverter) blocks(to *hclsyntax.Body, m jsonMember) error {
	labelled, err := objects(m.value, m.name)
	if err != nil {
		return err
	}
	for _, labels := range labelled {
		for _, label := range labels {
			if label.name == "//" {
				continue
			}
			bodies, err := objects(label.value, m.name+" "+label.name)
			if err != nil {
				return err
			}
			for _, members := range bodies {
				body, err := c.body(m.name, members, label.value.at)
				if err != nil {
					return err
				}
				to.Blocks = append(to.Blocks, &hclsyntax.Block{
					Type: m.name, Labels: []string{label.name}, Body: body, TypeRange: m.at, LabelRanges: []hcl.Range{label.at},
				})
			}
		}
	}
	return nil
}

func (c *jsonConverter) body(block string, members []jsonMember, at hcl.Range) (*hclsyntax.Body, error) {
	body := &hclsyntax.Body{Attributes: hclsyntax.Attributes{}, SrcRange: at}
	for _, m := range members {
		if block != Variable || m.name != Validation {
			if err := c.attribute(body, m); err != nil {
				return nil, err
			}
			continue
		}
		checks, err := objects(m.value, m.name)
		if err != nil {
			return nil, err
		}
		for _, check := range checks {
			inner, err := c.body(m.name, check, m.value.at)
			if err != nil {
				return nil, err
			}
			body.Blocks = append(body.Blocks, &hclsyntax.Block{Type: m.name, Body: inner, TypeRange: m.at})
		}
	}
	return body, nil
}

func (c *jsonConverter) attribute(to *hclsyntax.Body, m jsonMember) error {
	if m.name == "//" {
		return nil
	}
	if _, ok := to.Attributes[m.name]; ok {
		return fmt.Errorf("%s:%d: %s is set twice", m.at.Filename, m.at.Start.Line, m.name)
	}
	e, err := c.expression(m.value)
	if err != nil {
		return err
	}
	to.Attributes[m.name] = &hclsyntax.Attribute{Name: m.name, Expr: e, SrcRange: hcl.RangeBetween(m.at, m.value.at), NameRange: m.at}
	return nil
}

func (c *jsonConverter) expression(v jsonValue) (hclsyntax.Expression, error) {
	switch x := v.value.(type) {
	case string:
		return c.template(x, v.at)
	case json.Number:
		n, err := cty.ParseNumberVal(string(x))
		if err != nil {
			return nil, fmt.Errorf("%s:%d: the number %s is invalid", v.at.Filename, v.at.Start.Line, x)
		}
		return &hclsyntax.LiteralValueExpr{Val: n, SrcRange: v.at}, nil
	case bool:
		return &hclsyntax.LiteralValueExpr{Val: cty.BoolVal(x), SrcRange: v.at}, nil
	case []jsonValue:
		tuple := &hclsyntax.TupleConsExpr{SrcRange: v.at, OpenRange: v.at}
		for _, item := range x {
			e, err := c.expression(item)
			if err != nil {
				return nil, err
			}
			tuple.Exprs = append(tuple.Exprs, e)
		}
		return tuple, nil
	case []jsonMember:
		object := &hclsyntax.ObjectConsExpr{SrcRange: v.at, OpenRange: v.at}
		for _, m := range x {
			key, err := c.template(m.name, m.at)
			if err != nil {
				return nil, err
			}
			e, err := c.expression(m.value)
			if err != nil {
				return nil, err
			}
			object.Items = append(object.Items, hclsyntax.ObjectConsItem{KeyExpr: key, ValueExpr: e})
		}
		return object, nil
	}
	return &hclsyntax.LiteralValueExpr{Val: cty.NullVal(cty.DynamicPseudoType), SrcRange: v.at}, nil
}

// template returns the expression of a string. Places inside it are right if the string has no escapes.
func (c *jsonConverter) template(s string, at hcl.Range) (hclsyntax.Expression, error) {
	start := hcl.Pos{Line: at.Start.Line, Column: at.Start.Column + 1, Byte: at.Start.Byte + 1}
	tokens, diags := hclsyntax.LexTemplate([]byte(s), at.Filename, start)
	if diags.HasErrors() {
		return nil, Failure(diags)
	}
	if err := c.shape.check(tokens); err != nil {
		return nil, err
	}
	e, diags := hclsyntax.ParseTemplate([]byte(s), at.Filename, start)
	if diags.HasErrors() {
		return nil, Failure(diags)
	}
	return e, nil
}
