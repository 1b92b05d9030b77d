package lzip

const (
	// parseSpan is how far the parser searches for the cheapest path, in bytes. Paths meet long before that in most data.
	parseSpan = 1 << 12
)

// node is a position that the parser can reach, with the cheapest known path to it. The last part of the path starts at
// node from and is one of
//
//	a literal, a short rep or a match          first
//	a literal and a match at the same distance rep0After, first is the literal
//	a match, a literal, a match at the same    rep0After, first is the match of firstLen
//	distance
//
// The latter two are tried because a match after a differing byte is cheap to code.
type node struct {
	price     uint32
	from      int32
	first     int32 // stepLiteral, a rep from 0, or matchStep and a distance less one
	firstLen  int32
	rep0After bool
	state     uint8
	reps      [4]uint32
}

// Values of a step: those below matchStep are the index of a rep; with length 1 rep 0 is the short one.
const (
	stepLiteral = -1
	matchStep   = 4
)

// step is a symbol to be encoded.
type step struct {
	what int32
	len  int32
}

// optimalEncoder encodes a member with price-based parsing: it computes the cheapest sequence of symbols over a span
// of positions with the current probabilities, and encodes it.
type optimalEncoder struct {
	symbolEncoder
	finder treeFinder
	nice   int
	size   int

	matchLens lenPrices
	repLens   lenPrices
	dists     distPrices
	distUses  int
	slots     uint32 // how many slots the dictionary needs

	found []candidate // the matches at finder.pos-1
	steps []step
	nodes [parseSpan + maxMatch + 2]node
	last  int // the farthest node reached
}

// encode appends the stream of data, which is padded with dataPad bytes that are not part of it, to out.
func (e *optimalEncoder) encode(out, data []byte, dict, nice, depth int) []byte {
	e.size = len(data) - dataPad
	e.nice = nice
	e.symbolEncoder.reset(data, out)
	e.finder.reset(data, e.size, dict, nice, depth)
	e.matchLens.reset(&e.model.matchLen, nice)
	e.repLens.reset(&e.model.repLen, nice)
	e.slots = slotOf(uint32(dict-1)) + 1
	e.distUses = 0
	e.found = e.found[:0]
	for e.pos < e.size {
		if e.distUses <= 0 {
			e.dists.update(&e.model, e.slots)
			e.distUses = distRefresh
		}
		e.parse()
		for i := len(e.steps) - 1; i >= 0; i-- {
			e.emit(e.steps[i])
		}
	}
	return e.finish()
}

func (e *optimalEncoder) emit(s step) {
	ps := e.pos & posMask
	switch n := int(s.len); {
	case s.what == stepLiteral:
		e.literal()
	case s.what < matchStep:
		e.rep(int(s.what), n)
		if n > 1 {
			e.repLens.used(&e.model.repLen, ps)
		}
	default:
		e.match(uint32(s.what-matchStep), n)
		e.matchLens.used(&e.model.matchLen, ps)
		e.distUses--
	}
}

// single sets the steps to a single one, and skips its bytes.
func (e *optimalEncoder) single(what int32, n int) {
	e.steps = append(e.steps[:0], step{what, int32(n)})
	e.finder.skip(e.pos + n - e.finder.pos)
}

// lookup finds the matches at e.pos+cur.
func (e *optimalEncoder) lookup(cur int) {
	if e.finder.pos == e.pos+cur {
		e.found = e.finder.find(e.found[:0])
	}
}

// parse leaves the next symbols in steps, last first.
func (e *optimalEncoder) parse() {
	e.lookup(0)
	data, pos := e.data, e.pos
	avail := min(e.size-pos, maxMatch)
	if avail < 2 {
		e.single(stepLiteral, 1)
		return
	}
	// A match that is long enough is used without comparing prices.
	bestRep, repLen := 0, 0
	for i, r := range e.reps {
		if p := pos - 1 - int(r); p >= 0 {
			if n := matchLen(data, p, pos, avail); n > repLen {
				bestRep, repLen = i, n
			}
		}
	}
	if repLen >= e.nice {
		e.single(int32(bestRep), repLen)
		return
	}
	if n := len(e.found); n > 0 {
		if c := e.found[n-1]; int(c.len) >= e.nice {
			l := int(c.len) + matchLen(data, pos-1-int(c.dist)+int(c.len), pos+int(c.len), avail-int(c.len))
			e.single(matchStep+int32(c.dist), l)
			return
		}
	}

	n := &e.nodes[0]
	n.price, n.state, n.reps = 0, e.state, e.reps
	e.last = 0
	e.weigh(0)
	cur := 1
	for ; cur < e.last && cur < parseSpan; cur++ {
		e.lookup(cur)
		if n := len(e.found); n > 0 && int(e.found[n-1].len) >= e.nice {
			break // it will be taken next
		}
		e.arrive(cur)
		e.weigh(cur)
	}
	e.collect(cur)
}

// arrive computes the state at a node from the path to it.
func (e *optimalEncoder) arrive(cur int) {
	n := &e.nodes[cur]
	from := &e.nodes[n.from]
	state, reps := from.state, from.reps
	switch {
	case n.first == stepLiteral:
		state = nextLiteral[state&15]
	case n.first >= matchStep:
		state = nextMatch[state&15]
		reps = [4]uint32{uint32(n.first - matchStep), reps[0], reps[1], reps[2]}
	case n.firstLen == 1:
		state = nextShortRep[state&15]
	default:
		state = nextRep[state&15]
		reps = withRep(reps, int(n.first))
	}
	if n.rep0After {
		if n.first != stepLiteral {
			state = nextLiteral[state&15]
		}
		state = nextRep[state&15]
	}
	n.state, n.reps = state, reps
}

// collect walks back from node cur and stores the steps of the path.
func (e *optimalEncoder) collect(cur int) {
	e.steps = e.steps[:0]
	for cur > 0 {
		n := &e.nodes[cur]
		l := int32(cur) - n.from
		if n.rep0After {
			if n.first == stepLiteral {
				e.steps = append(e.steps, step{0, l - 1}, step{stepLiteral, 1})
			} else {
				e.steps = append(e.steps, step{0, l - 1 - n.firstLen}, step{stepLiteral, 1}, step{n.first, n.firstLen})
			}
		} else {
			e.steps = append(e.steps, step{n.first, l})
		}
		cur = int(n.from)
	}
}

// reach returns node i, which has no path yet if it is beyond e.last.
func (e *optimalEncoder) reach(i int) {
	for e.last < i {
		e.last++
		e.nodes[e.last].price = infinity
	}
}

// weigh offers all symbols that can follow node cur to the nodes they lead to.
func (e *optimalEncoder) weigh(cur int) {
	data, pos := e.data, e.pos+cur
	here := e.nodes[cur]
	s, ps := here.state&15, pos&posMask
	avail := min(e.size-pos, maxMatch)

	c := data[pos]
	// Before the first match there is nothing at rep0; the byte compared with is then one that differs.
	like := ^c
	if p := pos - 1 - int(here.reps[0]); p >= 0 {
		like = data[p]
	}

	// A literal, or a short rep.
	lit := &e.lit[before(data, pos)>>5]
	litPrice := here.price + price0(e.isMatch[s][ps])
	if s < firstMatched {
		litPrice += literalPrice(lit, uint32(c))
	} else {
		litPrice += matchedLiteralPrice(lit, uint32(c), uint32(like))
	}
	matchPrice := here.price + price1(e.isMatch[s][ps])
	repPrice := matchPrice + price1(e.isRep[s])
	e.reach(cur + 1)
	next := &e.nodes[cur+1]
	litBest := false
	if litPrice < next.price {
		next.price, next.from, next.first, next.firstLen, next.rep0After = litPrice, int32(cur), stepLiteral, 1, false
		litBest = true
	}
	if like == c {
		if p := repPrice + price0(e.isRep0[s]) + price0(e.isRep0Long[s][ps]); p < next.price {
			next.price, next.from, next.first, next.firstLen, next.rep0After = p, int32(cur), 0, 1, false
			litBest = false
		}
	}
	if avail < 2 {
		return
	}
	if litBest && like != c {
		e.rep0AfterLiteral(cur, 0, stepLiteral, litPrice, nextLiteral[s], here.reps[0])
	}

	// Reps.
	limit := min(avail, e.nice)
	startLen := minMatch
	for i, r := range here.reps {
		p := pos - 1 - int(r)
		if p < 0 || data[p] != c || data[p+1] != data[pos+1] {
			continue
		}
		n := matchLen(data, p, pos, limit)
		base := repPrice
		switch i {
		case 0:
			base += price0(e.isRep0[s]) + price1(e.isRep0Long[s][ps])
		case 1:
			base += price1(e.isRep0[s]) + price0(e.isRep1[s])
		default:
			base += price1(e.isRep0[s]) + price1(e.isRep1[s]) + priceOf(e.isRep2[s], uint32(i-2))
		}
		e.reach(cur + n)
		lens := &e.repLens.price[ps]
		for l := n; l >= minMatch; l-- {
			e.offer(cur, l, int32(i), base+lens[l])
		}
		if i == 0 {
			startLen = n + 1
		}
		e.rep0AfterMatch(cur, n, int32(i), base+lens[n], nextRep[s], r)
	}

	// Matches. For each length the nearest will do.
	found := e.found
	if len(found) == 0 {
		return
	}
	base := matchPrice + price0(e.isRep[s])
	lens := &e.matchLens.price[ps]
	longest := int(found[len(found)-1].len)
	if longest < startLen {
		return
	}
	e.reach(cur + longest)
	l := startLen
	for _, m := range found {
		n := int(m.len)
		if n < l {
			continue
		}
		for ; l < n && l < minMatch+lenStates-1; l++ {
			e.offer(cur, l, matchStep+int32(m.dist), base+lens[l]+e.dists.of(m.dist, lenStateOf(l)))
		}
		if l >= minMatch+lenStates-1 {
			price := base + e.dists.of(m.dist, lenStates-1)
			for ; l < n; l++ {
				e.offer(cur, l, matchStep+int32(m.dist), price+lens[l])
			}
		}
		price := base + lens[n] + e.dists.of(m.dist, lenStateOf(n))
		e.offer(cur, n, matchStep+int32(m.dist), price)
		e.rep0AfterMatch(cur, n, matchStep+int32(m.dist), price, nextMatch[s], m.dist)
		l = n + 1
	}
}

// offer proposes a symbol of l bytes at node cur.
func (e *optimalEncoder) offer(cur, l int, what int32, price uint32) {
	if n := &e.nodes[cur+l]; price < n.price {
		n.price, n.from, n.first, n.firstLen, n.rep0After = price, int32(cur), what, int32(l), false
	}
}

// rep0AfterMatch looks at a match of n bytes, a literal and a match at the same distance.
func (e *optimalEncoder) rep0AfterMatch(cur, n int, what int32, price uint32, state uint8, dist uint32) {
	data, pos := e.data, e.pos+cur+n
	if pos+1+minMatch > e.size {
		return
	}
	p := pos - 1 - int(dist)
	if data[p+1] != data[pos+1] || data[p+2] != data[pos+2] {
		return
	}
	price += price0(e.isMatch[state&15][pos&posMask]) +
		matchedLiteralPrice(&e.lit[data[pos-1]>>5], uint32(data[pos]), uint32(data[p]))
	e.rep0AfterLiteral(cur, n, what, price, nextLiteral[state&15], dist)
}

// rep0AfterLiteral looks at a match at rep0 behind a literal. The literal is n bytes after cur, what comes before it,
// the price goes up to its end, and state is the one there.
func (e *optimalEncoder) rep0AfterLiteral(cur, n int, what int32, price uint32, state uint8, dist uint32) {
	pos := e.pos + cur + n + 1
	limit := min(e.size-pos, e.nice)
	p := pos - 1 - int(dist)
	if limit < minMatch || p < 0 {
		return
	}
	l := matchLen(e.data, p, pos, limit)
	if l < minMatch || cur+n+1+l >= len(e.nodes) {
		return
	}
	s, ps := state&15, pos&posMask
	price += price1(e.isMatch[s][ps]) + price1(e.isRep[s]) + price0(e.isRep0[s]) + price1(e.isRep0Long[s][ps]) +
		e.repLens.price[ps][l]
	e.reach(cur + n + 1 + l)
	if to := &e.nodes[cur+n+1+l]; price < to.price {
		to.price, to.from, to.first, to.firstLen, to.rep0After = price, int32(cur), what, int32(n), true
	}
}
