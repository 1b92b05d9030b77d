package lzip

import "encoding/binary"

// run decodes until pos reaches stop, which must be within the window, or passes it by less than maxMatch; until the
// input is used up; or until the stream ends. It is one long function because the range coder lives in its locals; only
// the trees, which are worth a call, are elsewhere.
//
// Bits that tell one kind of symbol from another are decoded with a branch, as the branch is needed anyway:
//
//	rng, code, ip = normalize(…); bound = …; if code < bound { 0 bit } else { 1 bit }
func (d *decoder) run(stop int) status {
	var (
		in, ip, limit = d.in, d.ip, d.limit
		win, pos      = d.win, d.pos
		rng, code     = d.rng, d.code
		rep0          = d.rep0
		state         = d.state
		result        = needInput
		bound         uint32
	)

	for ip < limit {
		if pos >= stop {
			result = haveOutput
			break
		}
		posState := uint(pos) & posMask

		p := &d.isMatch[state&15][posState]
		rng, code, ip = normalize(rng, code, in, ip)
		if bound = (rng >> probBits) * uint32(*p); code < bound {
			rng = bound
			*p += (1<<probBits - *p) >> adaptShift

			lit := &d.lit[win[pos-1]>>5]
			var sym uint32
			var used int
			ahead := binary.BigEndian.Uint64(in[ip : ip+8])
			if state < firstMatched {
				sym, rng, code, used = literal(lit, rng, code, ahead)
			} else {
				src := pos - 1 - int(rep0)
				if src < windowLead {
					src += d.end - windowLead
				}
				sym, rng, code, used = matchedLiteral(lit, rng, code, ahead, uint32(win[src]))
			}
			ip += used
			state = nextLiteral[state&15]
			win[pos] = byte(sym)
			pos++
			continue
		}
		rng -= bound
		code -= bound
		*p -= *p >> adaptShift

		lens := &d.matchLen
		p = &d.isRep[state&15]
		rng, code, ip = normalize(rng, code, in, ip)
		bound = (rng >> probBits) * uint32(*p)
		isRep := code >= bound
		if !isRep {
			rng = bound
			*p += (1<<probBits - *p) >> adaptShift
		} else {
			rng -= bound
			code -= bound
			*p -= *p >> adaptShift

			p = &d.isRep0[state&15]
			rng, code, ip = normalize(rng, code, in, ip)
			if bound = (rng >> probBits) * uint32(*p); code < bound {
				rng = bound
				*p += (1<<probBits - *p) >> adaptShift

				p = &d.isRep0Long[state&15][posState]
				rng, code, ip = normalize(rng, code, in, ip)
				if bound = (rng >> probBits) * uint32(*p); code < bound {
					rng = bound
					*p += (1<<probBits - *p) >> adaptShift

					src := pos - 1 - int(rep0)
					if src < windowLead {
						if !d.wrapped {
							result = corrupt
							break
						}
						src += d.end - windowLead
					}
					state = nextShortRep[state&15]
					win[pos] = win[src]
					pos++
					continue
				}
				rng -= bound
				code -= bound
				*p -= *p >> adaptShift
			} else {
				rng -= bound
				code -= bound
				*p -= *p >> adaptShift

				p = &d.isRep1[state&15]
				rng, code, ip = normalize(rng, code, in, ip)
				if bound = (rng >> probBits) * uint32(*p); code < bound {
					rng = bound
					*p += (1<<probBits - *p) >> adaptShift
					rep0, d.rep1 = d.rep1, rep0
				} else {
					rng -= bound
					code -= bound
					*p -= *p >> adaptShift

					p = &d.isRep2[state&15]
					rng, code, ip = normalize(rng, code, in, ip)
					if bound = (rng >> probBits) * uint32(*p); code < bound {
						rng = bound
						*p += (1<<probBits - *p) >> adaptShift
						rep0, d.rep1, d.rep2 = d.rep2, rep0, d.rep1
					} else {
						rng -= bound
						code -= bound
						*p -= *p >> adaptShift
						rep0, d.rep1, d.rep2, d.rep3 = d.rep3, rep0, d.rep1, d.rep2
					}
				}
			}
			lens = &d.repLen
			state = nextRep[state&15]
		}

		n, used := 0, 0
		n, rng, code, used = length(lens, posState, rng, code, binary.BigEndian.Uint64(in[ip:ip+8]))
		ip += used

		if !isRep {
			var dist uint32
			dist, rng, code, ip = d.distance(n, rng, code, in, ip)
			if dist >= d.dict {
				rng, code, ip = normalize(rng, code, in, ip)
				result = corrupt
				if dist == markerDist && n == minMatch {
					result = endMarker
				} else if dist == markerDist && n == minMatch+1 {
					result = syncMarker
				}
				break
			}
			d.rep3, d.rep2, d.rep1, rep0 = d.rep2, d.rep1, rep0, dist
			state = nextMatch[state&15]
		}

		// The copy.
		src := pos - 1 - int(rep0)
		if src < windowLead {
			if !d.wrapped {
				result = corrupt
				break
			}
			src += d.end - windowLead
			if src+n > d.end {
				// It wraps around from the end of the window to its beginning.
				k := copy(win[pos:pos+n], win[src:d.end])
				from, to := win[windowLead:windowLead+n-k], win[pos+k:pos+n]
				for i := range to {
					to[i] = from[i] // may be what has just been written
				}
				pos += n
				continue
			}
		}
		if rep0 >= 7 {
			// Eight bytes at a time. Later bytes overwrite the excess, see windowSpare.
			from, to := win[src:src+n+7], win[pos:pos+n+7]
			for i := 0; i < n; i += 8 {
				binary.LittleEndian.PutUint64(to[i:i+8], binary.LittleEndian.Uint64(from[i:i+8]))
			}
		} else {
			from, to := win[src:src+n], win[pos:pos+n]
			for i := range to {
				to[i] = from[i]
			}
		}
		pos += n
	}

	d.ip, d.pos = ip, pos
	d.rng, d.code = rng, code
	d.rep0 = rep0
	d.state = state
	return result
}
