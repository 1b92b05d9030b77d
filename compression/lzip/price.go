package lzip

import "math"

// Prices are the current costs of symbols, in units of 1/64 bit. The optimal parser compares sums of them.

const (
	priceShift  = 6
	priceStep   = 2 // probabilities are looked up without their lowest bits
	infinity    = 1 << 30
	cheapDist   = 128 // distances below it have prices of their own, as all their bits are modelled
	distRefresh = 128 // matches after which the prices of distances are computed again
)

// bitPrice is the price of the 0 bit by its probability.
var bitPrice = func() (t [1 << (probBits - priceStep)]uint16) {
	for i := range t {
		p := (float64(i) + 0.5) / float64(len(t))
		t[i] = uint16(math.Round(-math.Log2(p) * (1 << priceShift)))
	}
	return t
}()

func price0(p prob) uint32 { return uint32(bitPrice[p>>priceStep&511]) }
func price1(p prob) uint32 { return uint32(bitPrice[(1<<probBits-1-p)>>priceStep&511]) }

// priceOf is price0 for b == 0, price1 for b == 1.
func priceOf(p prob, b uint32) uint32 {
	return uint32(bitPrice[(p^prob(-b)&(1<<probBits-1))>>priceStep&511])
}

func treePrice(probs []prob, sym uint32, n uint) uint32 {
	price := uint32(0)
	for sym |= 1 << n; sym > 1; sym >>= 1 {
		price += priceOf(probs[sym>>1], sym&1)
	}
	return price
}

func reversePrice(probs []prob, sym uint32, n uint) uint32 {
	price, node := uint32(0), uint32(1)
	for range n {
		b := sym & 1
		sym >>= 1
		price += priceOf(probs[node], b)
		node = node<<1 | b
	}
	return price
}

func literalPrice(probs *[0x400]prob, c uint32) uint32 {
	price := uint32(0)
	for sym := c | 0x100; sym > 1; sym >>= 1 {
		price += priceOf(probs[sym>>1&0x3ff], sym&1)
	}
	return price
}

func matchedLiteralPrice(probs *[0x400]prob, c, like uint32) uint32 {
	price, offset := uint32(0), uint32(0x100)
	for sym := c | 0x100; sym < 0x10000; {
		like <<= 1
		price += priceOf(probs[(offset+like&offset+sym>>8)&0x3ff], sym>>7&1)
		sym <<= 1
		offset &= ^(like ^ sym)
	}
	return price
}

// lenPrices holds the prices of lengths. A table is computed anew once it has been used as often as it has entries.
type lenPrices struct {
	price [posStates][maxMatch + 1]uint32
	uses  [posStates]int
	limit int // the longest length
}

func (l *lenPrices) reset(m *lenModel, limit int) {
	l.limit = limit
	for ps := range l.uses {
		l.update(m, ps)
	}
}

func (l *lenPrices) update(m *lenModel, ps int) {
	l.uses[ps] = l.limit
	t := &l.price[ps]
	base := price0(m.choice)
	n := minMatch
	for i := 0; i < lowLens && n <= l.limit; i, n = i+1, n+1 {
		t[n] = base + treePrice(m.low[ps][:], uint32(i), 3)
	}
	base = price1(m.choice) + price0(m.choice2)
	for i := 0; i < midLens && n <= l.limit; i, n = i+1, n+1 {
		t[n] = base + treePrice(m.mid[ps][:], uint32(i), 3)
	}
	base = price1(m.choice) + price1(m.choice2)
	for i := 0; n <= l.limit; i, n = i+1, n+1 {
		t[n] = base + treePrice(m.high[:], uint32(i), 8)
	}
}

// used counts a use.
func (l *lenPrices) used(m *lenModel, ps int) {
	if l.uses[ps]--; l.uses[ps] <= 0 {
		l.update(m, ps)
	}
}

// distPrices holds the prices of distances by length state.
type distPrices struct {
	cheap [lenStates][cheapDist]uint32
	slot  [lenStates][64]uint32 // with the direct bits
	align [alignSize]uint32
}

func (d *distPrices) update(m *model, slots uint32) {
	for ls := range d.slot {
		t := &d.slot[ls]
		for s := range slots {
			t[s] = treePrice(m.slot[ls][:], s, 6)
			if s >= endSlotModel {
				t[s] += (s>>1 - 1 - alignBits) << priceShift
			}
		}
	}
	for dist := range uint32(cheapDist) {
		slot, extra := slotOf(dist), uint32(0)
		if slot >= firstSlotModel {
			extra = reversePrice(m.spec[slot-firstSlotModel][:], dist, uint(slot>>1-1))
		}
		for ls := range d.cheap {
			d.cheap[ls][dist] = d.slot[ls][slot] + extra
		}
	}
	for i := range d.align {
		d.align[i] = reversePrice(m.align[:], uint32(i), alignBits)
	}
}

// of returns the price of a distance, less one, without that of its length.
func (d *distPrices) of(dist uint32, lenState int) uint32 {
	if dist < cheapDist {
		return d.cheap[lenState&3][dist]
	}
	return d.slot[lenState&3][slotOf(dist)&63] + d.align[dist&(alignSize-1)]
}
