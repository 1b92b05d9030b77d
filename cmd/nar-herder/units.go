package main

import (
	"fmt"
	"io"
	"reflect"
)

// units are the units that values of an option can have.
type units int

const (
	durations units = 1 << iota
	months          // m is a month
	sizes
)

// measured is an option value that has units.
type measured interface{ units() units }

func (ttlValue) units() units       { return durations | months }
func (durationValue) units() units  { return durations }
func (intervalValue) units() units  { return durations }
func (sinceValue) units() units     { return durations }
func (criterionValue) units() units { return durations }
func (sizeValue) units() units      { return sizes }

func (t typed[V, P]) units() units { return unitsOf(reflect.TypeFor[V]()) }

// unitsOf returns the units of an option's type. Most have none.
func unitsOf(option reflect.Type) units {
	for option.Kind() == reflect.Pointer || option.Kind() == reflect.Slice {
		option = option.Elem()
	}
	if value, ok := reflect.Zero(option).Interface().(measured); ok {
		return value.units()
	}
	return 0
}

func printUnits(w io.Writer, all units) error {
	text := ""
	if all != 0 {
		text += "\nUnits:\n"
	}
	if all&durations != 0 {
		text += "  durations    s, min, h, d, w, mo (30 days), such as 36h\n"
	}
	if all&months != 0 {
		text += "               m is a month in --ttl, --new-ttl, --negative-ttl and\n               --cached-compression-..., and invalid elsewhere\n"
	}
	if all&sizes != 0 {
		text += "  sizes        bytes; K, M, G, T, P or KiB, MiB, GiB, TiB, PiB (powers of\n               1024); KB, MB, GB, TB, PB (powers of 1000); or none. Numbers\n               below 65536 need a unit, such as B\n"
	}
	_, err := fmt.Fprint(w, text)
	return err
}
