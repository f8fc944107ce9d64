package values

import (
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/netip"

	"github.com/zclconf/go-cty/cty"
	"github.com/zclconf/go-cty/cty/function"
)

// prefixOf returns a network.
func prefixOf(v cty.Value) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(v.AsString())
	if err != nil {
		return p, fmt.Errorf("%q is not a network, as 10.0.0.0/8", v.AsString())
	}
	return p.Masked(), nil
}

// plus returns an address so many addresses after the first one of a network.
func plus(p netip.Prefix, n *big.Int) (netip.Addr, error) {
	first := p.Addr().AsSlice()
	sum := new(big.Int).Add(new(big.Int).SetBytes(first), n)
	if sum.Sign() < 0 || sum.BitLen() > len(first)*8 {
		return netip.Addr{}, fmt.Errorf("%s has no such address", p)
	}
	a, _ := netip.AddrFromSlice(sum.FillBytes(make([]byte, len(first))))
	if !p.Contains(a) {
		return a, fmt.Errorf("%s has no such address", p)
	}
	return a, nil
}

// cidrHost returns the address of a number in a network; negative numbers count from its end.
func cidrHost(args []cty.Value) (cty.Value, error) {
	p, err := prefixOf(args[0])
	if err != nil {
		return cty.DynamicVal, err
	}
	n, accuracy := args[1].AsBigFloat().Int(nil)
	if accuracy != big.Exact {
		return cty.DynamicVal, errors.New("the number of a host is a whole number")
	}
	if n.Sign() < 0 {
		n.Add(n, new(big.Int).Lsh(big.NewInt(1), uint(p.Addr().BitLen()-p.Bits())))
		if n.Sign() < 0 {
			return cty.DynamicVal, fmt.Errorf("%s has no such address", p)
		}
	}
	a, err := plus(p, n)
	return cty.StringVal(a.String()), err
}

// cidrNetmask returns the mask of a network.
func cidrNetmask(args []cty.Value) (cty.Value, error) {
	p, err := prefixOf(args[0])
	if err != nil {
		return cty.DynamicVal, err
	}
	mask, _ := netip.AddrFromSlice(net.CIDRMask(p.Bits(), p.Addr().BitLen()))
	return cty.StringVal(mask.String()), nil
}

// subnet returns the network of a number in another one, whose prefix is longer by some bits.
func subnet(p netip.Prefix, bits int, n *big.Int) (netip.Prefix, error) {
	length := p.Bits() + bits
	if bits < 0 || length > p.Addr().BitLen() {
		return p, fmt.Errorf("%s has no room for %d more bits of prefix", p, bits)
	}
	if n.Sign() < 0 || n.BitLen() > bits {
		return p, fmt.Errorf("%s has no subnet %s of %d more bits of prefix", p, n, bits)
	}
	a, err := plus(p, new(big.Int).Lsh(n, uint(p.Addr().BitLen()-length)))
	return netip.PrefixFrom(a, length), err
}

// wholeBits returns a number of bits.
func wholeBits(v cty.Value) (int, error) {
	bits, accuracy := v.AsBigFloat().Int64()
	if accuracy != big.Exact || bits < 0 || bits > 128 {
		return 0, errors.New("the number of bits is wrong")
	}
	return int(bits), nil
}

func cidrSubnet(args []cty.Value) (cty.Value, error) {
	p, err := prefixOf(args[0])
	if err != nil {
		return cty.DynamicVal, err
	}
	bits, err := wholeBits(args[1])
	if err != nil {
		return cty.DynamicVal, err
	}
	n, accuracy := args[2].AsBigFloat().Int(nil)
	if accuracy != big.Exact {
		return cty.DynamicVal, errors.New("the number of a subnet is a whole number")
	}
	s, err := subnet(p, bits, n)
	return cty.StringVal(s.String()), err
}

// cidrSubnetsFunc returns the function that places networks one after the other in another one, each behind the end of the last.
func cidrSubnetsFunc() function.Function {
	return function.New(&function.Spec{
		Params:   []function.Parameter{{Name: "prefix", Type: cty.String}},
		VarParam: &function.Parameter{Name: "newbits", Type: cty.Number},
		Type:     function.StaticReturnType(cty.List(cty.String)),
		Impl: func(args []cty.Value, _ cty.Type) (cty.Value, error) {
			p, err := prefixOf(args[0])
			if err != nil {
				return cty.DynamicVal, err
			}
			var all []string
			next := new(big.Int) // the first address that is free, counted from the beginning
			for _, arg := range args[1:] {
				bits, err := wholeBits(arg)
				if err != nil || bits == 0 || p.Bits()+bits > p.Addr().BitLen() {
					return cty.DynamicVal, fmt.Errorf("%s has no room for the bits of prefix", p)
				}
				size := new(big.Int).Lsh(big.NewInt(1), uint(p.Addr().BitLen()-p.Bits()-bits))
				number := new(big.Int).Div(new(big.Int).Add(next, new(big.Int).Sub(size, big.NewInt(1))), size)
				s, err := subnet(p, bits, number)
				if err != nil {
					return cty.DynamicVal, err
				}
				all = append(all, s.String())
				next.Mul(number.Add(number, big.NewInt(1)), size)
			}
			return List(all), nil
		},
	})
}
