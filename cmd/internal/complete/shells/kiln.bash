# bash completion for kiln. Nothing of a command line is run: kiln reads words as they are written, with their quotes.
_kiln() {
    # Words that bash divides at = and : are put together again, up to the cursor.
    local rest=${COMP_LINE:0:COMP_POINT} blanks word words=() i
    for ((i = 0; i <= COMP_CWORD; i++)); do
        blanks=${rest%%[![:blank:]]*}
        rest=${rest:${#blanks}}
        word=${COMP_WORDS[i]}
        ((i < COMP_CWORD)) || word=$rest
        if [[ $blanks || $i = 0 ]]; then words+=("$word"); else words[-1]+=$word; fi
        rest=${rest:${#word}}
    done

    local out directive
    out=$("${words[0]/#\~\//$HOME/}" __completeRaw "${words[@]:1}" 2>/dev/null) || return
    directive=${out##*:}
    out=${out%:*}
    ((directive & 1)) && return
    ((directive & 2)) && compopt -o nospace
    ((directive & 4)) && compopt +o default
    ((directive & 32)) && compopt -o nosort
    if ((directive & 16)); then
        compopt +o default -o dirnames
        return
    fi

    # readline only replaces what follows the last of its word breaks.
    local word=${words[-1]} plain breaks= prefix=
    plain=${word//\\/}
    [[ $COMP_WORDBREAKS == *=* ]] && breaks+='='
    [[ $COMP_WORDBREAKS == *:* ]] && breaks+=':'
    [[ $breaks && $word != [\"\']* ]] && prefix=${plain%"${plain##*["$breaks"]}"}

    local value description values=() descriptions=() width=0
    while IFS=$'\t' read -r value description; do
        [[ $value ]] || continue
        value=${value#"$prefix"}
        if [[ $word != [\"\']* ]]; then
            printf -v value %q "$value"
            value=${value//\\,/,}
        fi
        values+=("$value")
        descriptions+=("$description")
        ((${#value} <= width)) || width=${#value}
    done <<<"$out"

    # Descriptions are for a list, and would be in the way of inserting what several values have in common.
    if ((${#values[@]} > 1 && (COMP_TYPE == 63 || COMP_TYPE == 33 || COMP_TYPE == 64))); then
        local room=$((${COLUMNS:-80} - width - 4))
        for i in "${!values[@]}"; do
            description=${descriptions[i]}
            [[ $description ]] && ((room > 16)) || continue
            ((${#description} <= room)) || description=${description:0:room-1}…
            printf -v 'values[i]' '%-*s  (%s)' "$width" "${values[i]}" "$description"
        done
    fi
    COMPREPLY=("${values[@]}")
}
complete -o default -F _kiln kiln
