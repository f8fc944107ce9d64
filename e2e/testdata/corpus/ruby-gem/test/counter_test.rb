require 'counter'
raise 'wrong' unless Counter.count('aab') == 'a=2 b=1'
