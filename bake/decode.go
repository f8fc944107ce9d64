package bake

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/kilnbuild/kiln/bake/internal/syntax"
	"github.com/kilnbuild/kiln/bake/internal/values"
	"github.com/zclconf/go-cty/cty"
	"github.com/zclconf/go-cty/cty/convert"
)

// instance is a block of a target or a group; of a target with a matrix for one combination of its values.
type instance struct {
	name   string
	block  *hclsyntax.Block
	values map[string]cty.Value // of the matrix
	target *Target
	group  *Group
	done   map[string]bool
}

// expand returns the instances of a block.
func (e *evaluator) expand(b *hclsyntax.Block) ([]*instance, error) {
	name := b.Labels[0]
	if b.Type == syntax.Group {
		return []*instance{{name: name, block: b, group: &Group{Name: name}, done: map[string]bool{}}}, nil
	}
	matrix, naming := b.Body.Attributes["matrix"], b.Body.Attributes["name"]
	if matrix == nil {
		if naming != nil {
			return nil, syntax.ErrorAt(naming.NameRange, "the target %s has a name and no matrix: its name is %q", name, name)
		}
		return []*instance{newInstance(name, b, nil)}, nil
	}
	combinations, err := e.combinations(matrix)
	if err != nil {
		return nil, err
	}
	var all []*instance
	seen := map[string]bool{}
	for _, values := range combinations {
		if naming != nil {
			if name, err = e.nameOf(naming, values); err != nil {
				return nil, err
			}
		}
		if seen[name] {
			return nil, syntax.ErrorAt(b.LabelRanges[0], "the matrix of the target %s makes two targets named %s: "+
				"set name to a text with all values that differ", b.Labels[0], name)
		}
		seen[name] = true
		all = append(all, newInstance(name, b, values))
	}
	return all, nil
}

func newInstance(name string, b *hclsyntax.Block, values map[string]cty.Value) *instance {
	return &instance{name: name, block: b, values: values, target: &Target{Name: name}, done: map[string]bool{}}
}

// nameOf returns the name of the target of one combination of values.
func (e *evaluator) nameOf(a *hclsyntax.Attribute, values map[string]cty.Value) (string, error) {
	p, err := e.prepare(a.Expr)
	if err != nil {
		return "", err
	}
	if err := e.needs(p, func(name string) bool { _, ok := values[name]; return ok }); err != nil {
		return "", err
	}
	scope := e.scope.NewChild()
	scope.Variables = values
	v, err := e.evaluateIn(p, scope)
	if err != nil {
		return "", err
	}
	if v, err = convert.Convert(v, cty.String); err != nil || v.IsNull() {
		return "", syntax.ErrorAt(a.Expr.Range(), "the name of a target is not a string")
	}
	return v.AsString(), checkName(v.AsString(), a.Expr.Range())
}

// combinations returns the combinations of the values of a matrix. Those of the last name, in their order, change fastest.
func (e *evaluator) combinations(a *hclsyntax.Attribute) ([]map[string]cty.Value, error) {
	v, err := e.value(a.Expr)
	if err != nil {
		return nil, err
	}
	if v.IsNull() || !v.Type().IsObjectType() && !v.Type().IsMapType() {
		return nil, syntax.ErrorAt(a.Expr.Range(), "the matrix is not a mapping: write matrix = { NAME = [VALUE, …] }")
	}
	all := []map[string]cty.Value{{}}
	axes := v.AsValueMap()
	for _, name := range slices.Sorted(maps.Keys(axes)) {
		axis := axes[name]
		if axis.IsNull() || !axis.CanIterateElements() {
			return nil, syntax.ErrorAt(a.Expr.Range(), "the values of %s in the matrix are not a list", name)
		}
		if axis.LengthInt()*len(all) > maxTargets {
			return nil, syntax.ErrorAt(a.Expr.Range(), "the matrix makes more than %d targets", maxTargets)
		}
		var next []map[string]cty.Value
		for _, old := range all {
			for it := axis.ElementIterator(); it.Next(); {
				values := maps.Clone(old)
				_, values[name] = it.Element()
				next = append(next, values)
			}
		}
		all = next
	}
	return all, nil
}

// all evaluates all attributes of an instance.
func (e *evaluator) all(i *instance) error {
	for _, name := range syntax.SortedAttributes(i.block.Body) {
		if err := e.attribute(i, name); err != nil {
			return err
		}
	}
	return nil
}

// attribute evaluates an attribute of an instance, if it has it.
func (e *evaluator) attribute(i *instance, name string) error {
	a := i.block.Body.Attributes[name]
	if a == nil || i.done[name] || name == "name" || name == "matrix" {
		return nil
	}
	if err := e.enter(i.block.Type+"."+i.name+"."+name, a.NameRange); err != nil {
		return err
	}
	defer e.leave()
	p, err := e.prepare(a.Expr)
	if err != nil {
		return err
	}
	local := func(name string) bool { _, ok := i.values[name]; return ok }
	if err := e.needs(p, local); err != nil {
		return err
	}
	scope := e.scope.NewChild()
	scope.Variables = maps.Clone(i.values)
	if scope.Variables == nil {
		scope.Variables = map[string]cty.Value{}
	}
	for _, block := range []string{syntax.Target, syntax.Group} {
		if _, known := e.scope.Variables[block]; known || local(block) {
			continue
		}
		refs := slices.DeleteFunc(slices.Clone(p.refs), func(t hcl.Traversal) bool { return t.RootName() != block })
		if len(refs) > 0 {
			if scope.Variables[block], err = e.referred(block, refs); err != nil {
				return err
			}
		}
	}
	v, err := e.evaluateIn(p, scope)
	if err != nil {
		return err
	}
	if err := i.set(name, v); err != nil {
		return syntax.ErrorAt(a.Expr.Range(), "%s of the %s %s: %v", name, i.block.Type, i.name, err)
	}
	i.done[name] = true
	return nil
}

// referred returns what expressions see as target or group: of the blocks that they refer to the attributes that they name, or all.
func (e *evaluator) referred(block string, refs []hcl.Traversal) (cty.Value, error) {
	seen := map[string]map[string]cty.Value{}
	for _, ref := range refs {
		steps := make([]string, 0, 2)
		for _, step := range ref[1:] {
			attr, ok := step.(hcl.TraverseAttr)
			if !ok || len(steps) == 2 {
				break
			}
			steps = append(steps, attr.Name)
		}
		if len(steps) == 0 {
			return cty.NilVal, syntax.ErrorAt(ref.SourceRange(), "write %s.NAME.ATTRIBUTE: %s alone has no value", block, block)
		}
		i := e.instances[block][steps[0]]
		if i == nil {
			continue // HCL says that it does not exist
		}
		if seen[i.name] == nil {
			seen[i.name] = map[string]cty.Value{"name": cty.StringVal(i.name)}
		}
		for _, name := range attributesOf(block) {
			if name == "name" || name == "matrix" || len(steps) == 2 && steps[1] != name {
				continue
			}
			if err := e.attribute(i, name); err != nil {
				return cty.NilVal, err
			}
			seen[i.name][name] = i.get(name)
		}
	}
	all := map[string]cty.Value{}
	for name, attributes := range seen {
		all[name] = cty.ObjectVal(attributes)
	}
	return cty.ObjectVal(all), nil
}

// field returns the attribute of a name, and the pointer to it.
func (i *instance) field(name string) (attribute, any) {
	if i.group != nil {
		if name == "targets" {
			return attribute{name: name}, &i.group.Targets
		}
		return attribute{name: name}, &i.group.Description
	}
	for _, a := range attributes() {
		if a.name == name {
			return a, a.field(i.target)
		}
	}
	return attribute{}, nil
}

// set sets an attribute to a value. Null says nothing.
func (i *instance) set(name string, v cty.Value) error {
	if v.IsNull() {
		return nil
	}
	a, field := i.field(name)
	switch f := field.(type) {
	case *string:
		text, err := textOf(v)
		*f = text
		return err
	case **string:
		text, err := textOf(v)
		*f = &text
		return err
	case **bool:
		truth, err := convert.Convert(v, cty.Bool)
		if err != nil {
			return errors.New("it is neither true nor false")
		}
		*f = new(truth.True())
	case *map[string]*string:
		return setMap(f, v)
	case *[]string:
		items, err := itemsOf(v, "strings")
		if err != nil {
			return err
		}
		*f = []string{}
		for _, item := range items {
			text, err := textOf(item)
			if err != nil {
				return fmt.Errorf("an item is wrong: %w", err)
			}
			if text == "" && a.name != "inherits" && a.name != "targets" {
				continue // of an expression that says that there is nothing
			}
			*f = append(*f, text)
		}
	case *[]Entry:
		items, err := itemsOf(v, "strings or mappings")
		if err != nil {
			return err
		}
		*f = []Entry{}
		for _, item := range items {
			entries, err := a.read(item)
			if err != nil {
				return err
			}
			*f = append(*f, entries...)
		}
	}
	return nil
}

// textOf returns a string, or a number or truth value as a string.
func textOf(v cty.Value) (string, error) {
	if v.IsNull() {
		return "", errors.New("it is null")
	}
	if !v.Type().IsPrimitiveType() {
		return "", fmt.Errorf("it is a %s and not a string", v.Type().FriendlyName())
	}
	text, err := convert.Convert(v, cty.String)
	if err != nil {
		return "", err
	}
	return text.AsString(), nil
}

func itemsOf(v cty.Value, what string) ([]cty.Value, error) {
	ty := v.Type()
	if !ty.IsTupleType() && !ty.IsListType() && !ty.IsSetType() {
		return nil, fmt.Errorf("its type is %s, and it must be a list of %s: write [ ]", ty.FriendlyName(), what)
	}
	return v.AsValueSlice(), nil
}

func setMap(to *map[string]*string, v cty.Value) error {
	if ty := v.Type(); !ty.IsObjectType() && !ty.IsMapType() {
		return fmt.Errorf("its type is %s, and it must be a map of strings: write { KEY = VALUE }", ty.FriendlyName())
	}
	*to = map[string]*string{}
	for key, value := range v.AsValueMap() {
		if value.IsNull() {
			(*to)[key] = nil
			continue
		}
		text, err := textOf(value)
		if err != nil {
			return fmt.Errorf("the value of %q is wrong: %w", key, err)
		}
		(*to)[key] = &text
	}
	return nil
}

// read returns the entries that an item is, which is a string or a mapping.
func (a *attribute) read(v cty.Value) ([]Entry, error) {
	if v.IsNull() {
		return nil, errors.New("an item is null")
	}
	ty := v.Type()
	if !ty.IsObjectType() && !ty.IsMapType() {
		text, err := textOf(v)
		if err != nil {
			return nil, fmt.Errorf("an item is wrong: %w", err)
		}
		if text == "" {
			return nil, nil // of an expression that says that there is nothing
		}
		return a.entries(text)
	}
	e := Entry{}
	for key, value := range v.AsValueMap() {
		if value.IsNull() {
			continue
		}
		if a.name == "ssh" && key == "paths" {
			items, err := itemsOf(value, "strings")
			if err != nil {
				return nil, err
			}
			var paths []string
			for _, item := range items {
				path, err := textOf(item)
				if err != nil {
					return nil, err
				}
				paths = append(paths, path)
			}
			if e[key] = strings.Join(paths, ","); len(paths) == 0 {
				delete(e, key)
			}
			continue
		}
		text, err := textOf(value)
		if err != nil {
			return nil, fmt.Errorf("the value of %q is wrong: %w", key, err)
		}
		e[key] = text
	}
	return []Entry{e}, a.check(e)
}

// check returns an error if an entry that is a mapping has not what it needs.
func (a *attribute) check(e Entry) error {
	switch a.name {
	case "secret":
		return e.Secret()
	case "ssh":
		for key := range e {
			if key != "id" && key != "paths" {
				return fmt.Errorf("an agent has no %q", key)
			}
		}
		if e["id"] == "" {
			e["id"] = "default"
		}
	case "policy":
	default:
		if e["type"] == "" {
			return errors.New("an item has no type")
		}
		if a.name == "output" {
			return e.Output()
		}
	}
	return nil
}

// get returns the value of an attribute, in the form in which it was understood.
func (i *instance) get(name string) cty.Value {
	a, field := i.field(name)
	switch f := field.(type) {
	case *string:
		return cty.StringVal(*f)
	case **string:
		if *f == nil {
			return cty.NullVal(cty.String)
		}
		return cty.StringVal(**f)
	case **bool:
		if *f == nil {
			return cty.NullVal(cty.Bool)
		}
		return cty.BoolVal(**f)
	case *map[string]*string:
		return stringMap(*f)
	case *[]string:
		if *f == nil {
			return cty.NullVal(cty.List(cty.String))
		}
		return values.List(*f)
	case *[]Entry:
		return a.values(*f)
	}
	return cty.NullVal(cty.DynamicPseudoType)
}

func stringMap(m map[string]*string) cty.Value {
	switch {
	case m == nil:
		return cty.NullVal(cty.Map(cty.String))
	case len(m) == 0:
		return cty.MapValEmpty(cty.String)
	}
	values := map[string]cty.Value{}
	for key, value := range m {
		values[key] = cty.NullVal(cty.String)
		if value != nil {
			values[key] = cty.StringVal(*value)
		}
	}
	return cty.MapVal(values)
}

// values returns entries as a list: of secrets and agents as objects, of others as mappings.
func (a *attribute) values(entries []Entry) cty.Value {
	var all []cty.Value
	ty := cty.Map(cty.String)
	for _, e := range entries {
		var v cty.Value
		switch a.name {
		case "secret":
			v = cty.ObjectVal(map[string]cty.Value{"id": cty.StringVal(e["id"]), "src": cty.StringVal(e["src"]), "env": cty.StringVal(e["env"])})
		case "ssh":
			v = cty.ObjectVal(map[string]cty.Value{"id": cty.StringVal(e["id"]), "paths": values.List(e.Paths())})
		default:
			m := map[string]*string{}
			for key, value := range e {
				m[key] = &value
			}
			v = stringMap(m)
		}
		ty = v.Type()
		all = append(all, v)
	}
	if len(all) == 0 {
		return cty.ListValEmpty(ty)
	}
	return cty.ListVal(all)
}
